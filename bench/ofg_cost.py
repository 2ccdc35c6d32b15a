"""What on-the-fly guidance costs: an iteration with and without it, its inner loop alone, and torch's best form."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from neuralreg import kernels, metrics
from neuralreg.bench.harness import smooth_pair, timed
from neuralreg.bench.kernels.refine import ours, plain
from neuralreg.bench.pairs import RealPair, load_pair, prepare
from neuralreg.bench.scores import overlap
from neuralreg.images import read_geometry
from neuralreg.methods import ofg
from neuralreg.networks import VoxelMorph, predict
from neuralreg.options import resolve
from neuralreg.training.data import Batch
from neuralreg.transforms import Transform

DIGITS = {"wall_ms": 4, "seconds": 3}
CPU = torch.device("cpu")


def guidance_cost(size: int, network: str, steps: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Rows of the medians of whole training iterations (forward, backward, Adam), measured in turn.

    "without": the network is supervised by a field that is there; "unsupervised": similarity and diffusion in the
    outer loss; "guided": our guidance; "guided by torch": the same with an inner loop of grid_sample, LNCC by
    cumulative sums, sliced differences and torch's fused Adam.
    """
    grid = (size,) * 3
    fixed, moving = smooth_pair(grid, CPU)
    batch = Batch(fixed, moving)
    options = resolve(ofg.PRESETS, "paper", {"network": network, "steps": steps}, "ofg")
    unsupervised = resolve(ofg.PRESETS, "paper", {"network": network, "mode": "unsupervised"}, "ofg")
    trainee = ofg.make_trainee(options, grid, 3, seed=0)
    other = ofg.OfgTrainee(unsupervised, grid, trainee.module)
    optimiser = trainee.optimiser()
    target = torch.zeros(1, 3, *grid)

    def by_torch() -> Tensor:
        u = predict(trainee.module, fixed, moving)
        refined = torch_refine(fixed, moving, u.detach(), steps)
        return functional.mse_loss(u, refined) + options.smoothness * kernels.diffusion_loss(u)

    def without() -> Tensor:
        u = predict(trainee.module, fixed, moving)
        return functional.mse_loss(u, target) + options.smoothness * kernels.diffusion_loss(u)

    losses: dict[str, Callable[[], Tensor]] = {
        "without": without,
        "unsupervised": lambda: other.losses(batch, torch.Generator())["loss"],
        "guided": lambda: trainee.losses(batch, torch.Generator())["loss"],
        "guided by torch": by_torch,
    }

    def iteration(name: str) -> tuple[Tensor, ...]:
        optimiser.zero_grad(set_to_none=True)
        losses[name]().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return ()

    walls: dict[str, list[float]] = {name: [] for name in losses}
    with using(threads):
        for turn in range(-1, rounds):  # the first is for warming up
            for name in list(losses)[:: 1 if turn % 2 else -1]:
                wall, _ = timed(partial(iteration, name), CPU)
                if turn >= 0:
                    walls[name].append(wall)
    base = {name: statistics.median(walls[name]) for name in ("without", "unsupervised")}
    rows = []
    for name, times in walls.items():
        median = statistics.median(times)
        rows.append(
            {
                "network": network,
                "size": size,
                "steps": steps,
                "contender": name,
                "wall_ms": 1e3 * median,
                "low_ms": 1e3 * min(times),
                "high_ms": 1e3 * max(times),
                "over_without": median / base["without"],
                "over_unsupervised": median / base["unsupervised"],
                "rounds": rounds,
            }
        )
    return rows


def torch_refine(fixed: Tensor, moving: Tensor, u: Tensor, steps: int) -> Tensor:
    """The inner loop in torch's best form."""
    step = plain(u, fixed, moving)
    for _ in range(steps):
        step()
    return u  # what it costs is what counts: the contender's field stays its own


start_fields: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}


def _start(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    start_fields[function.__name__.removesuffix("_start")] = function
    return function


@_start
def zero_start(fixed: Tensor, moving: Tensor) -> Tensor:
    return fixed.new_zeros(1, fixed.ndim - 2, *fixed.shape[2:])


@_start
def random_start(fixed: Tensor, moving: Tensor) -> Tensor:
    """Normal numbers of one voxel, every voxel by itself."""
    return torch.randn(1, fixed.ndim - 2, *fixed.shape[2:])


@_start
def parameters_start(fixed: Tensor, moving: Tensor) -> Tensor:
    """What VoxelMorph predicts with random parameters in every layer, the last one included."""
    network = VoxelMorph(fixed.ndim - 2)
    network.flow.reset_parameters()  # type: ignore[operator]
    with torch.no_grad():
        return network(moving, fixed)


def optimiser_alone(
    name: str, starts: list[str], counts: list[int], rounds: int, threads: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Dice, folds and smoothness after so many steps from every start; then the time of a step, ours and torch's."""
    real = load_pair(name)
    pair, *_ = prepare(real.fixed, real.moving, real.initial, real.window)
    fixed, ndim = pair.fixed, pair.ndim
    moving = kernels.warp(pair.moving, torch.zeros(1, ndim, *pair.grid), pair.voxel_affine[None])
    with using(threads), torch.random.fork_rng(devices=[]):
        for start in starts:
            torch.manual_seed(seed)
            first = start_fields[start](fixed, moving)
            state = kernels.refine_state(first, fixed, moving)
            done, spent = 0, 0.0
            for count in sorted(set(counts)):
                begun = time.perf_counter()
                for _ in range(count - done):
                    kernels.refine_step(state)
                spent += time.perf_counter() - begun
                done = count
                yield {"start": start, "steps": count, "seconds": spent, **judge(real, state.displacement[0])}
        if not rounds:
            return
        u = zero_start(fixed, moving)
        steps = {"neuralreg": ours(u, fixed, moving), "torch": plain(u, fixed, moving)}
        walls: dict[str, list[float]] = {which: [] for which in steps}
        for turn in range(-1, rounds):
            for which, step in steps.items():
                wall, _ = timed(step, CPU)
                if turn >= 0:
                    walls[which].append(wall)
        medians = {which: statistics.median(times) for which, times in walls.items()}
        for which, median in medians.items():
            yield {
                "start": "zero",
                "contender": which,
                "step_ms": 1e3 * median,
                "over_ours": median / medians["neuralreg"],
            }


def judge(real: RealPair, displacement: Tensor) -> dict[str, float]:
    geometry = read_geometry(real.fixed)
    transform = Transform(displacement.clone(), geometry, read_geometry(real.moving), real.initial)
    inside = metrics.regularity(displacement, real.mask)
    return {
        "dice": overlap(transform, real.fixed_labels, real.moving_labels, real.labels),
        "folds_percent": metrics.folds_percent(displacement),
        "folds_percent_mask": inside["folds_percent"],
        "sdlogj_mask": inside["sdlogj"],
    }


@contextmanager
def using(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
