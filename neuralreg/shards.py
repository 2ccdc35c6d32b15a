"""Which part of a list one of several processes takes: by hand, of a SLURM array, of torchrun's ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

from neuralreg.errors import InputError

Thing = TypeVar("Thing")
SLURM = "slurm"


def read_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Index from 0 and count of the shard that ``text`` names: "i/n" with i from 1, "slurm", or None for all.

    "slurm" takes the place of this task in its array (SLURM_ARRAY_TASK_ID, _MIN, _MAX and _COUNT), whose indices must
    follow one another at an even step. It must be asked for: a list may as well have been cut by the array's script.
    """
    if text is None:
        return 0, 1
    if text == SLURM:
        names = [f"SLURM_ARRAY_TASK_{word}" for word in ("ID", "MIN", "MAX", "COUNT")]
        try:
            index, low, high, count = (int(environment[name]) for name in names)
        except (KeyError, ValueError):
            raise InputError(
                f"--shard slurm: this is no task of a SLURM array ({', '.join(names)})"
            ) from None
        step, rest = divmod(high - low, count - 1) if count > 1 else (1, 0)
        if rest or (index - low) % step:
            raise InputError(
                f"--shard slurm: the {count} tasks from {low} to {high} do not follow one another at an even step; "
                f"give --shard i/n"
            )
        return (index - low) // step, count
    first, slash, second = text.partition("/")
    try:
        index, count = int(first), int(second)
    except ValueError:
        index = count = 0
    if not slash or not 1 <= index <= count:
        raise InputError(f"--shard: expected i/n with i from 1 to n, such as 2/8, or slurm; got '{text}'")
    return index - 1, count


def share(things: Sequence[Thing], shard: tuple[int, int], rank: tuple[int, int] = (0, 1)) -> list[Thing]:
    """The things of one rank of one shard: every n-th, so that neighbours, often alike in size, are spread."""
    mine = things[shard[0] :: shard[1]]
    return list(mine[rank[0] :: rank[1]])


def rank_device(device: str, local_rank: int, ranks: int, gpus: int) -> str:
    """The device of one of several ranks: "auto" and "cuda" become a GPU of its own where there are GPUs.

    Raises:
        InputError: more ranks on this machine than GPUs.
    """
    if ranks == 1 or device not in ("auto", "cuda") or not gpus:
        return device
    if local_rank >= gpus:
        raise InputError(
            f"there is no GPU for rank {local_rank} of this machine, which has {gpus}; start torchrun with "
            f"--nproc-per-node {gpus}, or give --device cpu"
        )
    return f"cuda:{local_rank}"
