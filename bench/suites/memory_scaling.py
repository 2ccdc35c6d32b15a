"""Suite ``memory-scaling``: peak memory and seconds of an iteration over the cube's edge, and over its points.

Every measurement is a process of its own, whose memory counts beyond one that has only imported. A work stops at the
first size that does not fit into --limit, with a row that says so. --budget fits a line over the voxels through the
rows of this run and says which cubes fit; where that lies beyond what was measured, it says that it extrapolates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import partial

import torch

from neuralreg.bench.harness import free_bytes
from neuralreg.bench.rows import numbers
from neuralreg.bench.scaling import VOXEL, WORKS, bare, fits, taken
from neuralreg.bench.suites.plan import Item, Plan, Row, Settings
from neuralreg.errors import InputError
from neuralreg.memory import MB

HONOURS = frozenset({"quick", "size", "points", "peers", "filter", "threads", "limit", "budget"})
EDGES, QUICK_EDGES = (64, 96, 128, 160, 192, 256, 320, 384, 512, 640), (24, 40)
POINTS, QUICK_POINTS = (10_000, 30_000, 100_000, 300_000, 1_000_000), (4000,)
UNITS = {"KB": 1e-3, "MB": 1.0, "GB": 1e3, "TB": 1e6}


def plan(settings: Settings) -> Plan:
    """An item a work over sizes, and one a work whose points can be chosen."""
    found = Plan(closing=partial(answer, settings.budget) if settings.budget else None)
    if settings.budget:
        megabytes(settings.budget, "--budget")
    limit = megabytes(settings.limit, "--limit") if settings.limit else free_memory()
    edges = [_cube(size) for size in settings.sizes] or list(QUICK_EDGES if settings.quick else EDGES)
    counts = (
        numbers(settings.points, "--points")
        if settings.points
        else QUICK_POINTS
        if settings.quick
        else POINTS
    )
    threads = settings.threads or torch.get_num_threads()
    names = [*WORKS, *(name for name in VOXEL if settings.wants_peer(name))]
    for name in names:
        if not settings.wants(name):
            continue
        found.items.append(
            Item(
                name,
                f"cubes of {', '.join(map(str, edges))}",
                partial(over_sizes, name, sorted(edges), limit, threads),
            )
        )
        if name in VOXEL or name.startswith("ofg") or name.endswith("register"):
            continue
        edge = min(edges[-1], 40 if settings.quick else 128)
        what = f"{', '.join(map(str, counts))} points of a cube of {edge}"
        run = partial(over_points, name, edge, sorted(counts), limit, threads)
        found.items.append(Item(f"{name}, points", what, run))
    found.left_out += [
        ("points of ofg and of voxel contenders", "they see whole images"),
        ("anything above the limit", f"{limit:.0f} MB a process; the first size that does not fit is marked"),
    ]
    return found


def over_sizes(name: str, edges: list[int], limit: float, threads: int) -> Iterator[Row]:
    """A row a size, up to the first one that fails: a larger cube needs more."""
    for edge in edges:
        row = taken(name, edge, None, limit, threads)
        yield {"case": f"cube {edge}", "contender": _contender(name), "size": edge, "limit_mb": limit, **row}
        if row.get("failed"):
            return


def over_points(name: str, edge: int, counts: list[int], limit: float, threads: int) -> Iterator[Row]:
    """A row a number of points an iteration."""
    for count in counts:
        if count > edge**3:
            return
        row = taken(name, edge, count, limit, threads)
        case = f"cube {edge}, {count} points"
        yield {
            "case": case,
            "contender": _contender(name),
            "size": edge,
            "points": count,
            "limit_mb": limit,
            **row,
        }
        if row.get("failed"):
            return


def _contender(name: str) -> str:
    return f"torch {name}" if name in VOXEL else f"neuralreg {name}"


def answer(budget: str, rows: list[Row]) -> Iterator[str]:
    """For every contender the largest cube within the budget."""
    whole = megabytes(budget, "--budget")
    free = whole - bare().peak_mb * MB / 1e6
    for name in dict.fromkeys(row["contender"] for row in rows):
        sizes = [
            (row["size"], row["extra_mb"])
            for row in rows
            if row["contender"] == name and "points" not in row and not row.get("failed")
        ]
        try:
            edge, beyond = fits(sizes, free)
        except ValueError as error:
            yield f"{budget}, {name}: no answer, {error}"
            continue
        how = (
            f"extrapolated from {min(sizes)[0]} to {max(sizes)[0]}" if beyond else "within the sizes measured"
        )
        yield f"{budget}, {name}: cubes of {edge} voxels an axis ({how})"


def megabytes(text: str, flag: str) -> float:
    """Of "8GB", "500 MB" or "500"."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)?\s*", text.upper())
    if match is None or not float(match.group(1)):
        raise InputError(f"{flag}: a size such as 8GB or 500MB, got {text!r}")
    return float(match.group(1)) * UNITS[match.group(2) or "MB"]


def free_memory() -> float:
    """Nine tenths of what the system says is available, in MB."""
    free = free_bytes()
    if math.isnan(free):
        raise InputError("this system does not say how much memory is free: give --limit")
    return 0.9 * free / 1e6


def _cube(size: tuple[int, ...]) -> int:
    if len(set(size)) != 1:
        raise InputError(f"--size: suite memory-scaling measures cubes, got {'x'.join(map(str, size))}")
    return size[0]
