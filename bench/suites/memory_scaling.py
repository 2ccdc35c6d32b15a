"""Suite ``memory-scaling``: peak memory and seconds of an iteration over the cube's edge, and over its points.

Every measurement is a process of its own, whose memory counts beyond one that has only imported. A work stops at the
first size that does not fit into --limit, with a row that says so. --budget measures a few cubes and says which fit by
a line over their voxels, --bisect finds it by trying (bench/budget.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

from neuralreg.bench.budget import FIRST, STEP, bisected, by_line, by_trying, megabytes
from neuralreg.bench.harness import free_bytes
from neuralreg.bench.rows import numbers
from neuralreg.bench.scaling import VOXEL, WORKS, taken
from neuralreg.bench.suites.plan import Item, Plan, Row, Settings
from neuralreg.errors import InputError

HONOURS = frozenset({"quick", "size", "points", "peers", "filter", "threads", "limit", "budget", "bisect"})
EDGES, QUICK_EDGES = (64, 96, 128, 160, 192, 256, 320, 384, 512, 640), (24, 40)
BUDGET_EDGES = (64, 128, 192)  # enough for a line
POINTS, QUICK_POINTS = (10_000, 30_000, 100_000, 300_000, 1_000_000), (4000,)
# What --quick has no time for: every size is a process of its own, whose imports take seconds
NOT_QUICK, QUICK_POINTS_OF = ("ncf fast, register", "nephi fast, register", "ofg fast, register"), "nir fast"


def plan(settings: Settings) -> Plan:
    """An item a work over sizes, and one a work whose points can be chosen; with --budget what answers it alone."""
    threads = settings.threads or torch.get_num_threads()
    names = [name for name in WORKS if settings.wants(name)]
    names += [name for name in VOXEL if settings.wants(name) and settings.wants_peer(name)]
    if settings.bisect:
        return _tried(settings, names, threads)
    found = Plan(closing=partial(by_line, settings.budget) if settings.budget else None)
    limit = megabytes(settings.limit, "--limit") if settings.limit else free_memory()
    if settings.budget:
        limit = min(limit, megabytes(settings.budget, "--budget"))
    usual = QUICK_EDGES if settings.quick else BUDGET_EDGES if settings.budget else EDGES
    edges = sorted([_cube(size) for size in settings.sizes] or usual)
    few = QUICK_POINTS if settings.quick else POINTS
    counts = sorted(numbers(settings.points, "--points") if settings.points else few)
    for name in names:
        if settings.quick and not settings.filter and name in NOT_QUICK:
            found.left_out.append((name, "--quick registers with one method"))
            continue
        what = f"cubes of {', '.join(map(str, edges))}"
        found.items.append(Item(name, what, partial(over_sizes, name, edges, limit, threads)))
    for name in names if settings.points or not settings.budget else ():
        if not _has_points(name) or (settings.quick and name != QUICK_POINTS_OF):
            continue
        edge = min(edges[-1], 40 if settings.quick else 128)
        what = f"{', '.join(map(str, counts))} points of a cube of {edge}"
        run = partial(over_points, name, edge, counts, limit, threads)
        found.items.append(Item(f"{name}, points", what, run))
    found.left_out += [
        ("points of ofg and of voxel contenders", "they see whole images"),
        ("anything above the limit", f"{limit:.0f} MB a process; the first size that does not fit is marked"),
    ]
    return found


def _tried(settings: Settings, names: list[str], threads: int) -> Plan:
    """The plan of --budget --bisect."""
    if not settings.budget:
        raise InputError("--bisect tries which volumes fit into --budget: give that too")
    for option in ("size", "points", "limit"):
        if getattr(settings, option):
            raise InputError(f"--bisect chooses its sizes and limit itself: leave --{option} out")
    whole, free = megabytes(settings.budget, "--budget"), free_memory()
    if whole > free:
        raise InputError(f"--budget {settings.budget} cannot be tried here: {free:.0f} MB are free")
    found = Plan(closing=partial(by_trying, settings.budget))
    for name in names:
        run = partial(bisected, name, _contender(name), whole, threads)
        found.items.append(Item(name, f"cubes from {FIRST} on, until {STEP} lie between", run))
    return found


def _has_points(name: str) -> bool:
    return not (name in VOXEL or name.startswith("ofg") or name.endswith("register"))


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
