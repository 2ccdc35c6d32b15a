"""Trainings of OFG's modes at equal CPU time, and what their networks reach on subjects that none of them has seen."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralreg import kernels, metrics
from neuralreg.bench.pairs import data_folder
from neuralreg.errors import InputError
from neuralreg.fit import Progress
from neuralreg.methods import ofg
from neuralreg.methods.ofg_options import TAUGHT
from neuralreg.options import resolve
from neuralreg.training.budget import Every
from neuralreg.training.data import Pairs, ring
from neuralreg.training.layouts import read_collection
from neuralreg.training.loop import train
from neuralreg.training.trainee import Trainee, load_trainee, save_trainee

SCORES = ("dice", "dice_sd", "folds_percent", "folds_percent_mask", "sdlogj_mask")


@dataclass(frozen=True)
class Split:
    """What is trained on, what every network is scored on in the end, and the fewer pairs of its curve."""

    training: Pairs
    test: Pairs
    curve: Pairs


@dataclass(frozen=True)
class Run:
    """One training. ``options``: by name, as the command line takes them; ``cpu_seconds``: a teacher's included."""

    name: str
    options: dict[str, Any] = field(hash=False)
    seed: int
    cpu_seconds: float
    threads: int = 1
    looks: int = 5
    preset: str = "fast"


def hippocampi(test: int = 12) -> Split:
    """The 60 hippocampi by name: all ordered pairs of the last ``test`` are scored, the others are trained on."""
    return split(data_folder() / "hippocampus_mr_msd/hippocampus.npz", test)


def split(path: Path, test: int) -> Split:
    """The same of any data set that `neuralreg train` reads; labels are needed to score."""
    subjects = read_collection(path).subjects
    if not 2 <= test <= len(subjects) - 2:
        raise InputError(
            f"{path}: {test} test subjects of {len(subjects)} leave nothing to train or score on"
        )
    first, last = range(len(subjects) - test), range(len(subjects) - test, len(subjects))

    def all_of(members: range) -> list[tuple[int, int]]:
        return [(a, b) for a in members for b in members if a != b]

    return Split(Pairs(subjects, all_of(first)), Pairs(subjects, all_of(last)), Pairs(subjects, ring(last)))


def trained(run: Run, data: Split, folder: Path) -> tuple[dict[float, Path], dict[str, Any]]:
    """Trains, or goes on with an interrupted run: weights by the share of the budget, and what it took.

    A mode with a teacher gives half of the CPU time to the teacher, which trains unsupervised. Weights are written at
    ``looks`` even shares; nothing is scored meanwhile, so that all of the budget is training.
    """
    options, seconds, teacher = dict(run.options), run.cpu_seconds, {"steps": 0, "cpu_seconds": 0.0}
    folder.mkdir(parents=True, exist_ok=True)
    if options.get("mode") in TAUGHT and "teacher" not in options:
        seconds /= 2
        own = {**options, "mode": "unsupervised"}
        found, teacher = trained(
            Run(run.name, own, run.seed, seconds, run.threads, 1, run.preset), data, folder / "teacher"
        )
        options["teacher"] = str(found[1.0])
    chosen = resolve(ofg.PRESETS, run.preset, options, "ofg")
    shape = data.training.subjects.shape
    trainee = ofg.make_trainee(chosen, shape, len(shape), run.seed)
    parts = [look / run.looks for look in range(1, run.looks + 1)]
    files = {share: folder / f"share-{100 * share:03.0f}.pt" for share in parts}
    if not files[1.0].exists():
        out = folder / "run"
        state = train(
            trainee,
            data.training,
            None,
            out,
            cpu_budget=seconds,
            seed=run.seed,
            checkpoint_every=Every(seconds=60),
            resume=(out / "config.json").exists(),
            threads=run.threads,
            progress=keep_shares(trainee, files),
            config={"options": vars(chosen)},
        )
        save_trainee(trainee, files[1.0])
        took = {"steps": state.step, "cpu_seconds": state.cpu_seconds, "wall_seconds": state.seconds}
        (folder / "took.json").write_text(json.dumps(took))
    took = json.loads((folder / "took.json").read_text())
    took["cpu_seconds"] += teacher["cpu_seconds"]
    took["teacher_steps"] = teacher["steps"]
    return files, took


def keep_shares(trainee: Trainee, files: dict[float, Path]) -> Progress:
    """Writes the weights when a share of the training has passed."""

    def watch(step: int, total: int, loss: float, what: str) -> None:
        for share, file in files.items():
            if share < 1 and step >= share * total and not file.exists():
                save_trainee(trainee, file)

    return watch


def score(trainee: Trainee, pairs: Pairs, threads: int = 1) -> dict[str, float]:
    """Means over the pairs, labels moved by nearest neighbour, and the seconds of a prediction.

    dice_sd: between pairs. folds_percent: voxels with det <= 0 by central differences, on the whole grid, and among the
    fixed image's labels (mask), as is sdlogj.
    """
    found: list[list[float]] = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for place in range(len(pairs)):
            batch = pairs.batch([place])
            if batch.fixed_labels is None or batch.moving_labels is None:
                raise InputError("the test subjects need label maps to be scored")
            start = time.perf_counter()
            u = trainee.displacement(batch.fixed, batch.moving)
            seconds = time.perf_counter() - start
            warped = kernels.warp(batch.moving_labels, u, mode="nearest")[0, 0]
            fixed = batch.fixed_labels[0, 0]
            inside = metrics.regularity(u[0], fixed > 0)
            found.append(
                [
                    metrics.mean_dice(metrics.dice(warped, fixed)),
                    metrics.folds_percent(u[0]),
                    inside["folds_percent"],
                    inside["sdlogj"],
                    seconds,
                ]
            )
    finally:
        torch.set_num_threads(before)
    dice, folds, folds_mask, sdlogj, times = (np.array(column) for column in zip(*found, strict=True))
    return {
        "pairs": len(pairs),
        "dice": float(dice.mean()),
        "dice_sd": float(dice.std()),
        "folds_percent": float(folds.mean()),
        "folds_percent_mask": float(folds_mask.mean()),
        "sdlogj_mask": float(sdlogj.mean()),
        "predict_s": float(np.median(times)),
    }


def rows_of(run: Run, data: Split, folder: Path) -> list[dict[str, Any]]:
    """Trains and scores: a row a look on the curve's pairs, and the last one on all test pairs."""
    files, took = trained(run, data, folder)
    rows = []
    for share, file in files.items():
        rows.append({"look": "curve", "share": share, **score(load_trainee(file), data.curve, run.threads)})
    last = score(load_trainee(files[1.0]), data.test, run.threads)
    return [*rows, {"look": "test", "share": 1.0, **took, **last}]
