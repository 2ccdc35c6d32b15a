"""How much memory a registration takes, and how few points an iteration has to make do with under a limit.

The figures per voxel and per point are those of NIR's preset ``fast`` (tests/test_memory.py holds them against a real
run); velocities, jets and other methods have not been measured and may need more. What the process holds before the
fit, libraries and images included, is asked of the system.
"""

from __future__ import annotations

import os
import resource
import sys

from neuralreg.errors import InputError
from neuralreg.pair import Pair

# A voxel of the larger grid, once the fit is done: two displacements, the warped image, scores.
VOXEL_BYTES = 44
# A point of an iteration: coordinates, displacements, images, their gradients.
POINT_BYTES = 260
FEWEST_POINTS = 2000  # below, windows and penalties have nothing to work with
MB = 1 << 20


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


def most_points(limit_mb: float, pair: Pair) -> int:
    """How many points an iteration may have if the process is to stay below ``limit_mb``.

    Raises:
        InputError: the limit cannot be met, with the numbers.
    """
    held = held_bytes()
    voxels = max(pair.fixed.numel(), pair.moving.numel())
    evaluation = VOXEL_BYTES * voxels
    needed = max(evaluation, POINT_BYTES * FEWEST_POINTS)
    free = limit_mb * MB - held
    if free < needed:
        raise InputError(
            f"max_memory {limit_mb:.0f} MB cannot be met: libraries and images hold {held / MB:.0f} MB, the transform "
            f"and its inverse at {voxels} voxels need {evaluation / MB:.0f} MB more: give at least "
            f"{(held + needed) / MB:.0f} MB, or images at a coarser resolution"
        )
    return int(free / POINT_BYTES)
