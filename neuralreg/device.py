"""The device that a name means, and torch's settings for the time of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from neuralreg.errors import InputError


def pick_device(device: str) -> torch.device:
    """The torch device of a name; "auto" takes the GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError:
        raise InputError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: torch sees no CUDA device here; use --device cpu")
    if target.type not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} is not supported; use auto, cpu, cuda or cuda:N")
    return target


@contextmanager
def settings(threads: int | None = None, deterministic: bool = False) -> Iterator[None]:
    """torch's CPU threads and deterministic algorithms while the block runs; afterwards as they were.

    Raises:
        InputError: fewer than one thread.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    # Asked for only where it changes something: the call imports torch's compiler, which takes seconds.
    change = deterministic and not torch.are_deterministic_algorithms_enabled()
    before = torch.get_num_threads()
    try:
        if change:
            torch.use_deterministic_algorithms(True)
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)
        if change:
            torch.use_deterministic_algorithms(False)
