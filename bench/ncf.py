"""``python -m neuralreg.bench.ncf``: which of NCF's losses does what on a pair, and what other choices change.

Registers the pair once a variant and prints one row each, as a table of Markdown.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import neuralreg
from neuralreg.cli.flags import parse_options, parse_pair
from neuralreg.images import read_labels
from neuralreg.landmarks import read_landmarks
from neuralreg.machine import cpu_name
from neuralreg.metrics import dice, mean_dice, tre
from neuralreg.registration import Registration

LOSSES = ("photometric", "ssim", "occupancy")

MODULES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no residual path": {"residual": False},
    "8 channels": {"channels": 8},
    "absolute positions": {"output": "position"},
    "occupancy by cross entropy": {"occupancy_loss": "bce"},
    "occupancy by Dice": {"occupancy_loss": "dice"},
    "mse": {"photometric": "mse"},
}


def losses() -> dict[str, dict[str, Any]]:
    """Every choice of at least one of the paper's three losses, the others at weight 0."""
    chosen = [c for count in range(1, 4) for c in itertools.combinations(LOSSES, count)]
    return {" + ".join(c): {f"{name}_weight": 0.0 for name in LOSSES if name not in c} for c in chosen}


def main(
    fixed: Annotated[Path, typer.Option(help="Fixed image.")],
    moving: Annotated[Path, typer.Option(help="Moving image.")],
    study: Annotated[str, typer.Option(help="losses, modules or presets.")] = "losses",
    preset: Annotated[str, typer.Option(help="What the variants start from.")] = "paper",
    landmarks: Annotated[Path | None, typer.Option(help="csv of landmarks: TRE.")] = None,
    fixed_labels: Annotated[Path | None, typer.Option(help="With --moving-labels: Dice.")] = None,
    moving_labels: Annotated[Path | None, typer.Option(help="With --fixed-labels: Dice.")] = None,
    initial_transform: Annotated[Path | None, typer.Option(help="As for `neuralreg register`.")] = None,
    window: Annotated[str | None, typer.Option(metavar="LO,HI", help="As for `neuralreg register`.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Of every variant.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    seeds: Annotated[int, typer.Option(help="Registrations of a variant, their means shown.")] = 1,
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For every variant.")] = None,
) -> None:
    """Register a pair with variants of NCF and print what each reaches."""
    from neuralreg.methods.ncf import PRESETS

    variants = {"losses": losses(), "modules": MODULES, "presets": {p: {"preset": p} for p in PRESETS}}
    if study not in variants:
        raise typer.BadParameter(f"choose from {', '.join(variants)}, got {study!r}", param_hint="--study")
    common = {
        "initial_transform": initial_transform,
        "window": parse_pair("--window", window),
        "iterations": iterations,
        "threads": threads,
        **parse_options(option or []),
    }
    print(f"{cpu_name()}, {threads or torch.get_num_threads()} threads, {preset}, means of {seeds} seeds\n")
    heads = ("variant", "TRE mm", "Dice", "folds %", "SDlogJ", "CPU s", "wall s")
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for name, changes in variants[study].items():
        figures = []
        for seed in range(seeds):
            settings = {"preset": preset, **common, **changes}
            found = neuralreg.register(fixed, moving, method="ncf", seed=seed, **settings)
            figures.append(judge(found, landmarks, fixed_labels, moving_labels))
        means = [sum(column) / seeds for column in zip(*figures, strict=True)]
        digits = (2, 4, 4, 3, 1, 1)
        cells = [f"{mean:.{d}f}" if mean == mean else "-" for mean, d in zip(means, digits, strict=True)]
        print("| " + " | ".join([name, *cells]) + " |", flush=True)


def judge(
    found: Registration, landmarks: Path | None, fixed_labels: Path | None, moving_labels: Path | None
) -> list[float]:
    """TRE in mm, mean Dice (as `neuralreg evaluate` gives them; NaN where not asked), folds, SDlogJ, seconds."""
    error = overlap = float("nan")
    if landmarks is not None:
        ours, theirs = read_landmarks(landmarks)
        error = tre(found.transform.transform_points(ours, "LPS"), theirs)["mean"]
    if fixed_labels is not None and moving_labels is not None:
        target = read_labels(fixed_labels)
        warped = found.transform.warp(read_labels(moving_labels), target.geometry, "nearest")
        overlap = mean_dice(dice(target, warped))
    names = ("folds_percent", "sdlogj", "cpu_seconds", "wall_seconds")
    return [error, overlap, *(found.summary[name] for name in names)]


if __name__ == "__main__":
    typer.run(main)
