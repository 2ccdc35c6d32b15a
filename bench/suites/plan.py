"""What a suite is asked, and what it answers: a plan of measurements, and of what cannot be measured and why."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from neuralreg.errors import InputError
from neuralreg.registration import pick_device

DTYPES = {"float32": torch.float32, "float64": torch.float64}
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """The options of ``neuralreg bench``; None: the user said nothing, the suite's own choice counts."""

    quick: bool = False
    backend: str | None = None
    device: str | None = None
    dtype: str | None = None
    size: str | None = None
    peers: str | None = None
    filter: str | None = None
    threads: int | None = None
    seconds: float | None = None
    points: str | None = None
    limit: str | None = None
    budget: str | None = None
    pair: str | None = None
    bisect: bool = False

    def given(self) -> list[str]:
        """Names of the options that the user gave."""
        return [name for name, value in vars(self).items() if value not in (None, False)]

    @property
    def where(self) -> torch.device:
        """The device, the CPU where none is named.

        Raises:
            InputError: no such device here.
        """
        return pick_device(self.device or "cpu")

    @property
    def type(self) -> torch.dtype:
        """The floating-point type, float32 where none is named."""
        name = self.dtype or "float32"
        if name not in DTYPES:
            raise InputError(f"--dtype {name}: give {' or '.join(DTYPES)}")
        return DTYPES[name]

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """The volumes of --size: edges of cubes or 160x192x224, with commas between."""
        found = []
        for word in filter(None, (part.strip() for part in (self.size or "").split(","))):
            numbers = word.split("x")
            if len(numbers) not in (1, 3) or not all(n.isdecimal() and int(n) > 1 for n in numbers):
                raise InputError(f"--size: edges of cubes or 160x192x224, got {word!r}")
            found.append(tuple(map(int, numbers * 3 if len(numbers) == 1 else numbers)))
        return tuple(found)

    def wants(self, *names: str) -> bool:
        """Whether --filter leaves something of these names."""
        return not self.filter or any(self.filter in name for name in names)

    def wants_peer(self, name: str) -> bool:
        """Whether --peers leaves a contender that is not ours."""
        return self.peers is None or any(
            word.strip() in name for word in self.peers.split(",") if word.strip()
        )


@dataclass(frozen=True)
class Item:
    """One entry of a plan: what it measures, in words, and the function that yields its rows."""

    name: str
    what: str
    run: Callable[[], Iterable[Row]]


@dataclass
class Plan:
    """What will run, and what cannot, with the reason."""

    items: list[Item] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    # Behind the last item: words about all rows of the suite
    closing: Callable[[list[Row]], Iterator[str]] | None = None


def plan_of(suite: str, settings: Settings) -> Plan:
    """The plan of one suite.

    Raises:
        InputError: an option that the suite does not honour, or that leaves nothing to measure.
    """
    module = module_of(suite)
    if strange := [name for name in settings.given() if name not in module.HONOURS]:
        raise InputError(f"suite {suite} cannot honour --{strange[0]}; it takes {takes(module)}")
    plan: Plan = module.plan(settings)
    if not plan.items:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in plan.left_out)
        raise InputError(f"suite {suite} has nothing to run" + (f": {reasons}" if reasons else " that fits"))
    return plan


def module_of(suite: str) -> ModuleType:
    return importlib.import_module(f"neuralreg.bench.suites.{suite.replace('-', '_')}")


def takes(module: ModuleType) -> str:
    return ", ".join(f"--{name}" for name in Settings.__dataclass_fields__ if name in module.HONOURS)


def missing_package(name: str) -> str | None:
    """Why a package's contenders are left out; None where it is installed."""
    return None if importlib.util.find_spec(name) else f"{name} is not installed"
