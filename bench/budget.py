"""The largest cube that fits into a budget of memory: by a line through measured rows, or by trying.

The line stands for peak memory of whole processes over voxels. It says nothing of what lies beyond the sizes measured
but what their growth suggests, and the answer says so. Trying ends at a cube that has run and one that has not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from neuralreg.bench.scaling import MB, bare, taken
from neuralreg.errors import InputError

Row = dict[str, Any]
UNITS = {"KB": 1e-3, "MB": 1.0, "GB": 1e3, "TB": 1e6}
FIRST, STEP = 64, 16  # edge that is tried first, and how far apart the last two are


def megabytes(text: str, flag: str) -> float:
    """Of "8GB", "500 MB" or "500".

    Raises:
        InputError: something else stands there.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)?\s*", text.upper())
    if match is None or not float(match.group(1)):
        raise InputError(f"{flag}: a size such as 8GB or 500MB, got {text!r}")
    return float(match.group(1)) * UNITS[match.group(2) or "MB"]


def fits(rows: list[tuple[int, float]], free_mb: float) -> int:
    """The largest cube whose memory is within ``free_mb``, by a line through (edge, MB) over voxels.

    Raises:
        ValueError: fewer than two sizes, or memory that does not grow.
    """
    import numpy as np

    if len({edge for edge, _ in rows}) < 2:
        raise ValueError("two sizes at least are needed")
    edges, memory = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    slope, start = np.polyfit(edges**3, memory, 1)
    if slope <= 0:
        raise ValueError("the memory does not grow over the sizes measured: measure larger ones")
    return math.floor(max((free_mb - start) / slope, 0) ** (1 / 3) + 1e-9)


def by_line(budget: str, rows: list[Row]) -> Iterator[str]:
    """An answer a contender, from the rows of its cubes."""
    yield f"{budget}: by a line through the peak memory of the cubes measured here; --bisect tries instead"
    free = megabytes(budget, "--budget") - bare().peak_mb * MB / 1e6
    for name, mine in _contenders(rows):
        sizes = [(row["size"], row["extra_mb"]) for row in mine if not row.get("failed")]
        try:
            edge = fits(sizes, free)
        except ValueError as error:
            yield f"{budget}, {name}: no answer, {error}"
            continue
        least, most = min(sizes)[0], max(sizes)[0]
        how = (
            f"extrapolated from {least} to {most}"
            if edge > most
            else f"interpolated, {least} to {most} measured"
        )
        beyond = [row["size"] for row in mine if row.get("beyond_limit")]
        if beyond and edge >= min(beyond):
            edge, how = min(beyond) - 1, f"{how}; a cube of {min(beyond)} did not fit"
        yield f"{budget}, {name}: cubes of {edge} voxels an axis ({how})"


def bisected(work: str, contender: str, budget_mb: float, threads: int) -> Iterator[Row]:
    """A row a cube tried: edges double until one does not fit, and are halved between until they are STEP apart."""
    good, bad, edge = 0, 0, FIRST
    while not bad or bad - good > STEP:
        row = taken(work, edge, None, budget_mb, threads)
        if row.get("peak_mb", 0) > budget_mb:
            row = {"failed": f"took {row['peak_mb']:.0f} MB", "beyond_limit": True}
        yield {"case": f"cube {edge}", "contender": contender, "size": edge, "limit_mb": budget_mb, **row}
        if row.get("failed") and not row.get("beyond_limit"):
            return  # a fault, which says nothing about memory
        good, bad = (good, edge) if row.get("failed") else (edge, bad)
        edge = (good + bad) // 2 // STEP * STEP if bad else 2 * edge


def by_trying(budget: str, rows: list[Row]) -> Iterator[str]:
    """An answer a contender, from the rows of ``bisected``."""
    yield f"{budget}: tried by bisection, every cube in a process that was allowed no more"
    for name, mine in _contenders(rows):
        faults = [row for row in mine if row.get("failed") and not row.get("beyond_limit")]
        if faults:
            yield f"{budget}, {name}: no answer, a cube of {faults[0]['size']} failed: {faults[0]['failed']}"
            continue
        good = max((row["size"] for row in mine if not row.get("failed")), default=0)
        bad = min(row["size"] for row in mine if row.get("failed"))
        ran = f"cubes of {good} voxels an axis ran" if good else "no cube ran"
        yield f"{budget}, {name}: {ran}, {bad} did not"


def _contenders(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    for name in dict.fromkeys(row["contender"] for row in rows):
        yield name, [row for row in rows if row["contender"] == name and "points" not in row]
