"""Trainings of NePhi for its studies, and what a trained network reaches on pairs that it has not seen."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralreg import kernels, metrics
from neuralreg.bench.pairs import data_folder
from neuralreg.errors import InputError
from neuralreg.fit import Progress
from neuralreg.images import Geometry
from neuralreg.methods import nephi
from neuralreg.methods.nephi_options import Options
from neuralreg.pair import Pair
from neuralreg.training.data import Batch, Pairs, Subjects
from neuralreg.training.layouts import read_collection
from neuralreg.training.loop import train
from neuralreg.transforms import Transform, inverse_consistency

FIGURES = ("dice", "dice_sd", "folds_percent", "sdlogj", "inverse_consistency_mm", "seconds")
Maps = tuple[Tensor, Tensor | None]  # displacement and, where there is one, that of the backward map


def unseen_pairs(test: int = 12, data: Path | None = None) -> Pairs:
    """All ordered pairs of the last ``test`` subjects by name, of the hippocampi by default."""
    path = data or data_folder() / "hippocampus_mr_msd/hippocampus.npz"
    subjects = read_collection(path).subjects
    if not 2 <= test <= len(subjects):
        raise InputError(f"{path}: {test} test subjects of {len(subjects)} make no pair")
    last = sorted(range(len(subjects)), key=lambda place: subjects.names[place])[-test:]
    return all_pairs(subjects, last)


def all_pairs(subjects: Subjects, members: list[int]) -> Pairs:
    """Every ordered pair of two of them."""
    return Pairs(subjects, [(a, b) for a in members for b in members if a != b])


def trained(
    options: Options,
    pairs: Pairs,
    *,
    steps: int | None = None,
    cpu_seconds: float | None = None,
    batch: int = 4,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> nephi.NePhiTrainee:
    """A network trained on pairs without validation, as the training command does it."""
    shape = pairs.subjects.shape
    trainee = nephi.make_trainee(options, shape, len(shape), seed)
    with tempfile.TemporaryDirectory() as folder:
        train(
            trainee,
            pairs,
            None,
            Path(folder) / "run",
            steps=steps,
            cpu_budget=cpu_seconds,
            batch=batch,
            seed=seed,
            threads=threads,
            progress=progress,
            config={"options": asdict(options)},
        )
    return trainee


def nothing(batch: Batch) -> Maps:
    """The maps before any registration."""
    still = torch.zeros(len(batch.fixed), batch.fixed.ndim - 2, *batch.fixed.shape[2:])
    return still[0], still[0]


def predicted(
    trainee: Any, refine: int = 0, options: Options | None = None, seed: int = 0
) -> Callable[[Batch], Maps]:
    """Both maps of a batch of one pair by a trained network, refined by some steps; of OFG the forward one alone."""
    if not isinstance(trainee, nephi.NePhiTrainee):
        if refine:
            raise InputError("these weights are not NePhi's: their predictions are not refined here")
        return lambda batch: (trainee.displacement(batch.fixed, batch.moving)[0], None)

    def maps(batch: Batch) -> Maps:
        ndim = batch.fixed.ndim - 2
        pair = Pair(batch.fixed, batch.moving, torch.eye(ndim, ndim + 1))
        field, _ = nephi.fit_trained(trainee, pair, options or trainee.options, refine=refine, seed=seed)
        with torch.no_grad():
            both = [nephi.dense_displacement(one, pair.grid) for one in field.maps]
        return both[0], both[1]

    return maps


def score(pairs: Pairs, maps: Callable[[Batch], Maps], most: int | None = None) -> dict[str, Any]:
    """Means over the pairs, and how many they were; ``most``: so many pairs, drawn alike every time.

    dice: over the labels, moved by nearest neighbour (dice_sd between pairs). folds_percent: voxels with det <= 0 by
    central differences. inverse_consistency_mm: mean distance between a point and where both maps take it.
    """
    count = len(pairs)
    places = list(range(count))
    if most is not None and most < count:  # at even distances ordered pairs would share an image
        places = sorted(random.Random(0).sample(places, most))
    rows = np.array([list(one_score(pairs, place, maps)) for place in places])
    means = dict(
        zip(
            ("dice", "folds_percent", "sdlogj", "inverse_consistency_mm", "seconds"),
            rows.mean(0),
            strict=False,
        )
    )
    return {"pairs": len(rows), "dice_sd": float(rows[:, 0].std()), **{k: float(v) for k, v in means.items()}}


def one_score(pairs: Pairs, place: int, maps: Callable[[Batch], Maps]) -> Iterator[float]:
    """Dice, folds, smoothness, inverse consistency (nan without a backward map) and seconds of one pair."""
    batch = pairs.batch([place])
    if batch.fixed_labels is None or batch.moving_labels is None:
        raise InputError("the test subjects need label maps to be scored")
    start = time.perf_counter()
    forward, backward = maps(batch)
    seconds = time.perf_counter() - start
    warped = kernels.warp(batch.moving_labels, forward[None], mode="nearest")
    yield metrics.mean_dice(metrics.dice(warped[0, 0], batch.fixed_labels[0, 0]))
    regularity = metrics.regularity(forward)
    yield from (regularity["folds_percent"], regularity["sdlogj"])
    spacing = pairs.subjects[pairs.pairs[place][0]].spacing
    grid = Geometry(tuple(batch.fixed.shape[2:]), np.diag([*spacing, 1.0]))
    if backward is None:
        yield float("nan")
    else:
        both = Transform(forward, grid, grid), Transform(backward, grid, grid)
        yield inverse_consistency(*both)["mean_mm"]
    yield seconds
