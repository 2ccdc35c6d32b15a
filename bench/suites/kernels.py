"""Suite ``kernels``: every op against other formulations, float64 first, and against the floor of this machine."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from neuralreg.bench import kernels
from neuralreg.bench.harness import (
    Case,
    Measurement,
    Setup,
    floor_seconds,
    measure,
    within_free_memory,
)
from neuralreg.bench.suites.plan import Item, Plan, Row, Settings, missing_package

HONOURS = frozenset({"quick", "backend", "device", "dtype", "size", "peers", "filter", "threads", "seconds"})
PACKAGES = {"monai": "MONAI", "interpol": "torch-interpol"}
OURS = "neuralreg"


def plan(settings: Settings) -> Plan:
    """An item a family of ops; --filter looks at families first, and at single works where no family is meant."""
    setup = Setup(settings.where, settings.quick, settings.type, settings.sizes)
    families = sorted(module.name for module in pkgutil.iter_modules(kernels.__path__))
    meant = [name for name in families if settings.wants(name)]
    found = Plan()
    for family in meant or families:
        words = None if meant else settings.filter
        what = (importlib.import_module(f"{kernels.__name__}.{family}").__doc__ or "").strip().splitlines()[0]
        found.items.append(Item(family, what, partial(rows_of, family, setup, settings, words)))
    for package, name in PACKAGES.items():
        if settings.wants_peer(name) and (reason := missing_package(package)):
            found.left_out.append((name, reason))
    if settings.quick and settings.wants_peer("torch.compile"):
        found.left_out.append(("torch.compile", "--quick does not wait for a compiler"))
    return found


def rows_of(family: str, setup: Setup, settings: Settings, words: str | None) -> Iterator[Row]:
    """A row a contender of every case."""
    most = settings.seconds or (1.5 if setup.quick else 60)
    for case in importlib.import_module(f"{kernels.__name__}.{family}").cases(setup):
        if words and words not in case.work and words not in case.op:
            continue
        chosen = {k: v for k, v in case.contenders.items() if k.startswith(OURS) or settings.wants_peer(k)}
        one = replace(case, contenders=chosen)
        with within_free_memory(setup.device):
            found = measure(one, setup.device, rounds=5 if setup.quick else 15, budget=most)
        floor = floor_seconds(case.floor_bytes, case.flops, setup.device)
        yield from (row(case, measured, floor) for measured in found)


def row(case: Case, one: Measurement, floor: float) -> Row:
    """What was measured of a contender."""
    return {"case": f"{case.op}, {case.work}", "contender": one.contender, **one.row(case.tolerance, floor)}
