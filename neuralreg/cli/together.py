"""`neuralreg register` under torchrun: what it serves, who writes, and who speaks when something goes wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralreg.cli.flags import OWN_FLAGS, RegisterFlags
from neuralreg.errors import InputError, NeuralregError
from neuralreg.writing import IMAGE_SUFFIXES, suffix_of

if TYPE_CHECKING:
    import torch.distributed as dist

    from neuralreg.sharded.ranks import Together
    from neuralreg.sharded.registration import Part

SERVED = {
    "method", "preset", "fixed_mask", "moving_mask", "initial_transform", "window", "quantiles", "nan_to", "iterations",
    "precision", "seed", "deterministic", "device", "threads", "margin",
}  # fmt: skip
WRITERS: dict[str, Callable[[Part, Path | None], None]] = {
    "--transform-out": lambda part, path: part.save_transform(path),
    "--inverse-out": lambda part, path: part.save_inverse(path),
    "--warped-out": lambda part, path: part.save_warped(path),
    "--field-out": lambda part, path: part.save_field(path),
    "--summary": lambda part, path: part.save_summary(path),
}
WORD_SECONDS = 10.0  # that a rank waits for the words of another one


def register_together(
    fixed: Path,
    moving: Path,
    outputs: Mapping[str, Path],
    settings: Mapping[str, Any],
    progress: Callable[..., None] | None,
) -> Part:
    """Registers the pair with the other ranks and writes the outputs, by flag, together.

    Raises:
        InputError: what is not served by several processes for one pair, before any work.
        NeuralregError: what any rank has met.
    """
    arguments = {name: value for name, value in settings.items() if name in OWN_FLAGS}
    options = {name: value for name, value in settings.items() if name not in arguments}
    defaults = {flag.name: flag.default for flag in fields(RegisterFlags)}
    given = {name for name, value in arguments.items() if value != defaults.get(name)}
    unserved = sorted(f"--{name.replace('_', '-')}" for name in given - SERVED)
    unserved += [flag for flag in outputs if flag not in WRITERS]
    if unserved:
        raise InputError(
            f"several processes for one pair do not serve {', '.join(unserved)}: leave it out, or start without "
            "torchrun"
        )
    for flag in ("--transform-out", "--inverse-out"):
        if flag in outputs and suffix_of(outputs[flag]) not in IMAGE_SUFFIXES:
            raise InputError(
                f"{flag} {outputs[flag]}: several processes write displacement fields as NIfTI; name it .nii.gz, and "
                "neuralreg convert makes another format of it"
            )
    import torch

    from neuralreg.device import pick_device
    from neuralreg.images import read_geometry
    from neuralreg.sharded.ranks import joined
    from neuralreg.sharded.registration import check_straight, register

    kept = {name: arguments[name] for name in given - {"device", "threads"}}
    threads = arguments["threads"]
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    with joined(pick_device(arguments["device"])) as ranks, one_voice(ranks):
        for flag, path, role in (("--transform-out", fixed, "fixed"), ("--inverse-out", moving, "moving")):
            if flag in outputs:
                check_straight(read_geometry(path, role=f"{role} image"))
        part = register(
            ranks, fixed, moving, inverse_out="--inverse-out" in outputs, progress=progress, **kept, **options
        )
        write_all(part, outputs)
    return part


def write_all(part: Part, outputs: Mapping[str, Path]) -> None:
    """Every rank gives its part of each file; rank 0 writes all of them or none."""
    from neuralreg.outputs import write_together

    def write(flag: str) -> Callable[[Path | None], None]:
        return lambda path: WRITERS[flag](part, path)

    if part.ranks.first:
        write_together({path: write(flag) for flag, path in outputs.items()})
    else:
        for flag in outputs:
            write(flag)(None)


@contextmanager
def one_voice(ranks: Together) -> Iterator[None]:
    """Where one rank fails, all end: rank 0 with that rank's line, the others with nothing to say.

    A rank that fails leaves its line with the others and closes its connections, which breaks whatever they wait
    for. Where rank 0 does not take the line up in time, the rank speaks for itself.
    """
    try:
        yield
    except BaseException as error:
        if ranks.store is None:
            raise
        if ranks.first:
            _first_ends(ranks, ranks.store, error)
        else:
            _other_ends(ranks, ranks.store, error)
        raise


def _first_ends(ranks: Together, store: dist.Store, error: BaseException) -> None:
    """Takes up what another rank has said, and stays, as it may keep the words, until the others have gone."""
    lost = _lost_peer(error)
    line = store.get("failed").decode() if lost and _said(store, ["failed"]) else None
    store.set("heard", "")
    _said(store, [f"gone {rank}" for rank in range(1, ranks.world)])
    if lost:
        raise NeuralregError(
            line or "another process has ended without a word: killed, perhaps for want of memory"
        ) from error


def _other_ends(ranks: Together, store: dist.Store, error: BaseException) -> None:
    """Leaves its line, if it has one of its own, and goes when rank 0 knows it."""
    import torch.distributed as dist

    from neuralreg.cli import error_line

    line, heard = error_line(error), True
    with suppress(dist.DistNetworkError):  # rank 0 has ended, and so has spoken
        if not _lost_peer(error):
            store.set("failed", f"process {ranks.rank}: {line or repr(error)}")
            dist.destroy_process_group()
            heard = _said(store, ["heard"])
        store.set(f"gone {ranks.rank}", "")
    if _lost_peer(error) or (line is not None and heard):
        sys.exit(2)
    if line is not None:
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


def _lost_peer(error: BaseException) -> bool:
    """Whether an error of torch's tells of a connection, not of this rank."""
    signs = ("gloo", "nccl", "connection", "socket")
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)


def _said(store: dist.Store, keys: list[str]) -> bool:
    """Whether other ranks have left words under all these keys in time.

    The store is asked again and again: of a wait that ends without the keys torch warns.
    """
    end = time.monotonic() + WORD_SECONDS
    while not store.check(keys):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
