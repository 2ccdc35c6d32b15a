"""How much memory a registration takes, and how few points an iteration has to make do with under a limit.

A method says with ``holding(options)`` what a fit of its options holds; tests/test_memory.py keeps those figures
against real runs. What the process holds before the fit, libraries and images included, is asked of the system.
"""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass

from neuralreg.errors import InputError
from neuralreg.kernels.backends import registry
from neuralreg.pair import Pair

FEWEST_POINTS = 2000  # below, windows and penalties have nothing to work with
MB = 1 << 20
SLAB_POINTS = 1 << 19  # voxels at which a map is asked at once when the whole grid is evaluated
SLAB_BYTES = 64  # of each of them


@dataclass(frozen=True)
class Holding:
    """Bytes of memory that a fit holds beyond the images, as the kernels for CPUs hold them."""

    # A point of an iteration: coordinates, displacements, images, their gradients
    point: float = 260
    # A voxel of the larger grid once the fit is done: two displacements, the warped image, scores
    voxel: float = 52
    # A voxel of both images while it is fitted: smaller images, masks and occupancies
    image: float = 4
    # Whatever the points: scratch of the kernels
    scratch: float = 24 * MB


def peak_bytes() -> int:
    """High-water mark of this process's resident memory."""
    try:
        with open("/proc/self/status") as file:  # getrusage would count what the parent held when it forked
            line = next(line for line in file if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def held_bytes() -> int:
    """Resident memory of this process now; its high-water mark where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak_bytes()


def most_points(limit_mb: float, pair: Pair, holding: Holding) -> int:
    """How many points an iteration may have if the process is to stay below ``limit_mb``.

    Raises:
        InputError: the limit cannot be met, with the numbers, or what would be held cannot be counted here.
    """
    chosen = registry.choose("field", pair.device)
    if chosen != "cpu":
        raise InputError(
            "max_memory counts what the kernels for CPUs hold in this machine's memory; with the backend "
            f"{chosen} on {pair.device.type} it cannot be kept: leave it out"
        )
    held = held_bytes()
    voxels = max(pair.fixed.numel(), pair.moving.numel())
    evaluation = holding.voxel * voxels + SLAB_BYTES * min(voxels, SLAB_POINTS)
    fixed = holding.scratch + holding.image * voxels
    needed = max(holding.scratch + evaluation, fixed + holding.point * FEWEST_POINTS)
    free = limit_mb * MB - held
    if free < needed:
        raise InputError(
            f"max_memory {limit_mb:.0f} MB cannot be met: libraries and images hold {held / MB:.0f} MB, the transform "
            f"and its inverse at {voxels} voxels need {evaluation / MB:.0f} MB more, the kernels "
            f"{holding.scratch / MB:.0f} MB: give at least {(held + needed) / MB:.0f} MB, or images at a coarser "
            "resolution"
        )
    return int((free - fixed) / holding.point)
