"""Suite ``iteration``: one optimiser step of every method, whole and part by part, beside the same step in plain torch.

"plain torch" is the same step on the reference backend, which is our formulation in plain torch; "plain torch,
compiled" puts its forward pass through torch.compile; "plain-nir" is a NIR written with torch's own modules alone.
Errors are those of the loss and of all gradients, against the same step in float64. The floor of a step is that of its
parts together: the products that the reference multiplies, and what the parts hand on (bench/floors.py).
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from neuralreg.bench import plain_nir
from neuralreg.bench.floors import counted, moved_bytes
from neuralreg.bench.harness import (
    Measurement,
    checked,
    floor_seconds,
    in_turn,
    smooth_pair,
    within_free_memory,
)
from neuralreg.bench.parts import parts_of
from neuralreg.bench.steps import METHODS, Step, Work, away, in_float64
from neuralreg.bench.suites.plan import Item, Plan, Row, Settings
from neuralreg.kernels import use_backend
from neuralreg.pair import Pair

HONOURS = frozenset({"quick", "backend", "device", "size", "peers", "filter", "threads", "seconds"})
STAGES = {"nir": ("fit",), "ncf": ("fit",), "nephi": ("train", "refine"), "ofg": ("train",)}
SLOW = (
    "paper",
    "paper-diffeomorphic",
    "paper-hybrid",
    "paper-encoded",
    "shapes",
)  # seconds a step, left out by --quick
# A ReLU that float32 rounds over its kink changes one point's gradient, and with it entries that this point alone
# reaches; see the fields among the kernels.
TOLERANCE = 0.05
COMPILED, PLAIN, MODULES = "plain torch, compiled", "plain torch", "plain-nir"


def works() -> list[Work]:
    """Every method with every preset, in every stage that it learns in."""
    return [
        Work(method, preset, stage)
        for method, stages in STAGES.items()
        for preset, stage in itertools.product(METHODS[method].PRESETS, stages)
        if preset != "shapes"  # of 2-D images
    ]


def plan(settings: Settings) -> Plan:
    """An item a work and volume."""
    found = Plan()
    device = settings.where
    for work, size in itertools.product(works(), settings.sizes or _usual(settings)):
        name = f"{work}, {'x'.join(map(str, size))}"
        if not settings.wants(name):
            continue
        if settings.quick and work.preset in SLOW:
            found.left_out.append((str(work), "--quick takes no step of seconds"))
            continue
        others = [name for name in _others(work, settings) if settings.wants_peer(name)]
        found.items.append(
            Item(
                name,
                "beside " + (", ".join(others) or "nothing"),
                partial(rows_of, name, work, size, device, others, settings),
            )
        )
    if settings.quick and settings.wants_peer(COMPILED):
        found.left_out.append((COMPILED, "--quick does not wait for a compiler"))
    return found


def _usual(settings: Settings) -> tuple[tuple[int, ...], ...]:
    return ((32, 32, 32),) if settings.quick else ((160, 192, 224),)


def _others(work: Work, settings: Settings) -> list[str]:
    others = [PLAIN] if settings.quick else [PLAIN, COMPILED]
    if (work.method, work.preset) == ("nir", "paper-displacement") and settings.where.type == "cpu":
        others.append(MODULES)
    return others


def rows_of(
    name: str, work: Work, size: tuple[int, ...], device: torch.device, others: list[str], settings: Settings
) -> Iterator[Row]:
    """Whole steps in turn, one row a contender; then their parts, a row each, where the step is not compiled."""
    with within_free_memory(device):
        yield from _rows_of(name, work, size, device, others, settings)


def _rows_of(
    name: str, work: Work, size: tuple[int, ...], device: torch.device, others: list[str], settings: Settings
) -> Iterator[Row]:
    try:
        truth, flops = counted(partial(_truth, work, size, device))
    except RuntimeError as error:  # no memory
        words = f"no truth to hold it against: {str(error).strip().splitlines()[-1][:160]}"
        yield from ({"case": name, "contender": one, "failed": words} for one in ("neuralreg", *others))
        return
    contenders = {"neuralreg": None, **dict.fromkeys(others, "reference")}
    found: dict[str, Measurement] = {}
    steps: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
    bare: dict[str, Step] = {}
    for contender, backend in contenders.items():
        step = plain_step(size, device) if contender == MODULES else work.make(size, device)
        if contender == COMPILED:
            step.loss = torch.compile(step.loss)
        bare[contender] = step
        steps[contender] = _under(backend, step)
        first = _under(backend, _seeded(step.loss_and_gradients))
        found[contender] = checked(contender, first, truth)
    sound = [name for name, one in found.items() if not one.failed]
    rounds, most = (5, 3.0) if settings.quick else (9, 120.0)
    most = most if settings.seconds is None else settings.seconds
    in_turn([found[name] for name in sound], [steps[name] for name in sound], device, rounds, most)
    least = moved_bytes(bare["neuralreg"], device) if "neuralreg" in sound else float("nan")
    floor = None if math.isnan(least) else floor_seconds(least, flops, device)
    for contender, one in found.items():
        yield {"case": name, "contender": contender, **one.row(TOLERANCE, floor)}
    for contender in sound:
        if contender != COMPILED:  # a compiled graph has no parts to tell apart
            yield from _parts(name, contender, bare[contender], contenders[contender], device, rounds, most)


def _parts(
    name: str,
    contender: str,
    step: Step,
    backend: str | None,
    device: torch.device,
    rounds: int,
    most: float,
) -> Iterator[Row]:
    """Half the rounds, fewer once ``most`` seconds are spent."""
    watched: list[dict[str, tuple[float, float]]] = []
    started = time.perf_counter()
    with use_backend(backend) if backend else nullcontext():
        while not watched or (len(watched) < rounds // 2 + 1 and time.perf_counter() - started < most):
            watched.append(parts_of(step, device))
    for part in watched[0]:
        taken = sorted(1e3 * one[part][0] for one in watched)
        row = {
            "case": name,
            "contender": contender,
            "part": part,
            "median_ms": statistics.median(taken),
            "p20_ms": taken[round(0.2 * (len(taken) - 1))],
            "p80_ms": taken[round(0.8 * (len(taken) - 1))],
            "rounds": len(taken),
        }
        if device.type == "cpu":
            row["cpu_ms"] = statistics.median(1e3 * one[part][1] for one in watched)
        yield row


def plain_step(size: tuple[int, ...], device: torch.device) -> Step:
    """An iteration of the plain-torch NIR in preset paper-displacement."""
    fixed, moving = smooth_pair(size, device)
    pair = Pair(fixed, moving, torch.eye(3, 4, device=device))
    options = plain_nir.plain_options()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = plain_nir.make_network(3, options).to(device)
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        return plain_nir.loss_of(network, pair, options, plain_nir.draw_offset(pair, options, generator))[0]

    return away(Step(loss, torch.optim.Adam(network.parameters(), lr=options.lr, fused=True), network))


def _truth(work: Work, size: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Loss and gradients of the first step, in float64 on the reference backend."""
    step = work.make(size, device, dtype=torch.float64)
    step.module.double()
    with use_backend("reference"), in_float64():
        return _seeded(step.loss_and_gradients)()


def _seeded(function: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    """The function with one seed for whatever it draws: the windows that dropout leaves out."""

    def run() -> tuple[Tensor, ...]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return function()

    return run


def _under(
    backend: str | None, function: Callable[[], tuple[Tensor, ...]]
) -> Callable[[], tuple[Tensor, ...]]:
    def run() -> tuple[Tensor, ...]:
        with use_backend(backend) if backend else nullcontext():
            return function()

    return run
