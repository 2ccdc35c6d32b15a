"""``python -m neuralreg.bench.nephi``: what NePhi reaches and what it costs.

``hippocampus``: a trained network on all pairs of unseen subjects, before and after refinement. ``shapes``: triangles
and circles. ``ratio``: how few points the regulariser needs. ``ablation``: inverse consistency against diffusion.
``interpolate``: maps between those of two pairs. ``memory``, ``memory-figure`` and ``time``: beside voxel methods and
torch's double backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from neuralreg.bench import nephi_figure
from neuralreg.bench.nephi_cost import CONTENDERS, COST_COLUMNS, STAGES, memory_row, time_rows
from neuralreg.bench.nephi_runs import FIGURES, all_pairs, nothing, predicted, score, trained, unseen_pairs
from neuralreg.bench.rows import numbers, provenance, read_rows, run_command, using_threads, write_rows
from neuralreg.bench.shapes import shapes as draw_shapes
from neuralreg.cli.flags import parse_options
from neuralreg.errors import InputError
from neuralreg.figure import require_matplotlib
from neuralreg.methods.nephi import PRESETS, NePhiTrainee, between, predict
from neuralreg.options import resolve
from neuralreg.pair import Pair
from neuralreg.training.data import Pairs
from neuralreg.training.trainee import load_trainee
from neuralreg.writing import check_writable

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Out = Annotated[Path | None, typer.Option(help="Table of all figures (.csv).")]
Picture = Annotated[Path | None, typer.Option("--figure", help="Picture (.png; needs matplotlib).")]
Extra = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Of NePhi, for all runs; repeat.")
]
Seed = Annotated[int, typer.Option(help="Seed of all random numbers.")]
Threads = Annotated[int | None, typer.Option(help="All cores by default.")]
Weights = Annotated[Path, typer.Option(help="A training's best.pt or last.pt.")]
Preset = Annotated[str, typer.Option(help="Of nephi.")]
Steps = Annotated[int, typer.Option(help="Of every training.")]
Count = Annotated[int, typer.Option(help="Shapes that are trained on.")]
Size = Annotated[int, typer.Option(help="Pixels an axis.")]
Batch = Annotated[int, typer.Option(help="Pairs a step.")]
Unseen = Annotated[int, typer.Option("--test", help="Other shapes, whose ordered pairs are scored.")]


@app.command()
def hippocampus(
    weights: Weights,
    out: Out = None,
    refine: Annotated[str, typer.Option(help="Steps, with commas between.")] = "50",
    test: Annotated[int, typer.Option(help="The last subjects by name.")] = 12,
    most: Annotated[int | None, typer.Option(help="Score so many of the pairs only.")] = None,
    data: Annotated[Path | None, typer.Option(help="Another data set that `train` reads.")] = None,
    option: Extra = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Dice, folds and inverse consistency before, after the prediction and after refinement; OFG's weights, too."""
    trainee: Any = load_trainee(weights)
    pairs = unseen_pairs(test, data)
    if pairs.subjects.shape != tuple(trainee.shape):
        raise InputError(
            f"the weights are for images of {trainee.shape}, the data are {pairs.subjects.shape}"
        )
    method = trainee.describe()["method"]
    changed = resolve({"weights": trainee.options}, "weights", parse_options(option or [], own=()), method)
    stages = [("before", nothing), ("prediction", predicted(trainee))]
    if isinstance(trainee, NePhiTrainee):
        for steps in numbers(refine, "--refine"):
            stages.append((f"refined {steps}", predicted(trainee, steps, changed, seed)))
    rows = []
    with using_threads(threads):
        for stage, maps in stages:
            rows.append({**provenance(), "method": method, "weights": weights.name, "stage": stage})
            rows[-1] |= {"options": " ".join(option or ()), "seed": seed, **score(pairs, maps, most)}
            write_rows(out, rows)
    _show("all ordered pairs" if most is None else f"{most} pairs", rows, ("method", "stage", "pairs"))


@app.command()
def shapes(
    out: Out = None,
    figure: Picture = None,
    size: Size = 128,
    count: Count = 200,
    steps: Steps = 300,
    batch: Batch = 4,
    test: Unseen = 8,
    refine: Annotated[int, typer.Option(help="Steps behind a prediction, scored apart; 0: none.")] = 50,
    preset: Preset = "shapes",
    option: Extra = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train on triangles and circles, register pairs of new ones; the picture shows the last stage's maps."""
    _check(out, figure)
    arguments = (size, count, steps, batch, test, preset, option, seed, threads)
    rows = _study({"": {}}, "setting", arguments, out, figure, refine)
    _show("triangles and circles", rows, ("stage", "pairs"))


@app.command()
def ratio(
    out: Out = None,
    exponents: Annotated[str, typer.Option(help="4^-r of the pixels, with commas between.")] = "2,3,4,5,6,7",
    size: Size = 128,
    count: Count = 200,
    steps: Steps = 300,
    batch: Batch = 4,
    test: Unseen = 8,
    preset: Preset = "shapes",
    option: Extra = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train with the regulariser at fewer and fewer points."""
    _check(out, None)
    settings = {
        f"4^-{r}": {"regulariser_share": 4.0**-r, "regulariser_bounds": (1, size * size)}
        for r in numbers(exponents, "--exponents")
    }
    rows = _study(settings, "ratio", (size, count, steps, batch, test, preset, option, seed, threads), out)
    _show("points of the regulariser over the pixels", rows, ("ratio", "pairs"))


@app.command()
def ablation(
    out: Out = None,
    weights: Annotated[str, typer.Option(help="Of the regulariser, with commas between.")] = "0.1,1,10",
    size: Size = 128,
    count: Count = 200,
    steps: Steps = 300,
    batch: Batch = 4,
    test: Unseen = 8,
    preset: Preset = "shapes",
    option: Extra = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train with gradient inverse consistency and with diffusion in its place."""
    _check(out, None)
    try:
        values = [float(word) for word in weights.split(",")]
    except ValueError:
        raise InputError(f"--weights: numbers with commas between, got {weights!r}") from None
    settings = {
        f"{name} {value:g}": {"regulariser": name, "regulariser_weight": value}
        for name in ("inverse", "diffusion")
        for value in values
    }
    rows = _study(
        settings, "regulariser", (size, count, steps, batch, test, preset, option, seed, threads), out
    )
    _show("regulariser and its weight", rows, ("regulariser", "pairs"))


@app.command()
def interpolate(
    weights: Weights,
    figure: Annotated[Path, typer.Option(help="Picture (.png; needs matplotlib).")],
    first: Annotated[str, typer.Option(help="Two places among the last subjects, fixed,moving.")] = "0,1",
    second: Annotated[str, typer.Option(help="Two others.")] = "2,3",
    shares: Annotated[int, typer.Option(help="Columns from the first pair's codes to the second's.")] = 5,
    test: Annotated[int, typer.Option(help="The last subjects by name.")] = 12,
    data: Annotated[Path | None, typer.Option(help="Another data set that `train` reads.")] = None,
) -> None:
    """The maps between those of two pairs: a moving image warped by codes on the way from one pair's to another's."""
    _check(None, figure)
    trainee = load_trainee(weights)
    if not isinstance(trainee, NePhiTrainee):
        raise InputError(f"{weights}: not the weights of method nephi")
    pairs = unseen_pairs(test, data)
    names = sorted(pairs.members, key=lambda place: pairs.subjects.names[place])
    fields, images = [], []
    for words in (first, second):
        places = numbers(words, "--first, --second")
        if len(places) != 2 or not all(0 <= place < test for place in places):
            raise InputError(f"a pair is two places below {test} with a comma between, got {words!r}")
        fixed, moving = (pairs.subjects[names[place]].image[None] for place in places)
        ndim = fixed.ndim - 2
        fields.append(predict(trainee, Pair(fixed, moving, torch.eye(ndim, ndim + 1))))
        images.append(moving)
    steps = [k / max(1, shares - 1) for k in range(shares)]
    nephi_figure.draw_between(
        [between(fields[0], fields[1], share) for share in steps], steps, images[0], figure
    )


@app.command()
def memory(
    out: Out = None,
    sizes: Annotated[str, typer.Option(help="Cubes' edges, with commas between.")] = "64,96,128,160,192,256",
    contenders: Annotated[str, typer.Option(help="With commas between.")] = ",".join(CONTENDERS),
    stages: Annotated[str, typer.Option(help="With commas between.")] = ",".join(STAGES),
    limit: Annotated[float, typer.Option(metavar="MB", help="What a process may allocate.")] = 6000,
    preset: Preset = "paper",
    threads: Threads = 1,
) -> None:
    """Peak memory of one training or refinement step against the image's size, each in a process of its own."""
    _check(out, None)
    names = _some_of(CONTENDERS, contenders, "--contenders")
    rows: list[dict[str, Any]] = []
    for stage in _some_of(STAGES, stages, "--stages"):
        for name in names:
            for size in sorted(numbers(sizes, "--sizes")):
                row = memory_row(name, stage, size, preset, limit, threads or torch.get_num_threads())
                if row is None:
                    continue
                rows.append({**provenance(), **row})
                write_rows(out, rows)
                print(f"{name} {stage} {size}: {row['extra_mb'] or row['error']}")
                if row["error"]:
                    break  # a larger cube needs more


@app.command("memory-figure")
def memory_figure(
    tables: Annotated[list[Path], typer.Argument(metavar="TABLE...", help="Of `memory` (.csv).")],
    figure: Annotated[Path, typer.Option(help="Picture (.png; needs matplotlib).")],
) -> None:
    """Draws the kept rows of `memory` over the cube's edge."""
    _check(None, figure)
    nephi_figure.draw_memory([row for table in tables for row in read_rows(table)], figure)


@app.command()
def time(
    out: Out = None,
    points: Annotated[str, typer.Option(help="Of a refinement step, with commas between.")] = "3000,100000",
    rounds: Annotated[int, typer.Option(help="Alternating repetitions.")] = 7,
    preset: Preset = "paper",
    size: Annotated[int, typer.Option(help="Edge of the images' cube.")] = 96,
    threads: Threads = None,
) -> None:
    """The regulariser and the whole refinement step against torch's double backward of the same module."""
    _check(out, None)
    with using_threads(threads):
        rows = [
            {**provenance(), **row} for row in time_rows(numbers(points, "--points"), rounds, preset, size)
        ]
        write_rows(out, rows)
    table = Table(title="seconds, medians")
    for head in COST_COLUMNS:
        table.add_column(head)
    for row in rows:
        table.add_row(*(f"{row[k]:.4g}" if isinstance(row[k], float) else str(row[k]) for k in COST_COLUMNS))
    Console(width=150).print(table)


def _study(
    settings: dict[str, dict[str, Any]],
    what: str,
    arguments: tuple[int, int, int, int, int, str, list[str] | None, int, int | None],
    out: Path | None,
    figure: Path | None = None,
    refine: int = 0,
) -> list[dict[str, Any]]:
    """A training on shapes for every setting, and what it predicts; refined by so many steps in a row of its own."""
    size, count, steps, batch, test, preset, option, seed, threads = arguments
    if count < 2 or test < 2:
        raise InputError(f"--count, --test: a pair takes at least 2 shapes, got {count}, {test}")
    if figure is not None and test < 3:
        raise InputError(f"--test: the picture shows pairs of the first 3 shapes, got {test}")
    subjects, unseen = draw_shapes(count, size, seed), draw_shapes(test, size, seed + 1)
    held = all_pairs(unseen, list(range(len(unseen))))
    rows: list[dict[str, Any]] = []
    with using_threads(threads):
        for name, own in settings.items():
            options = resolve(PRESETS, preset, {**parse_options(option or [], own=()), **own}, "nephi")
            trainee = trained(options, Pairs(subjects), steps=steps, batch=batch, seed=seed, threads=threads)
            stages = {"prediction": predicted(trainee)}
            if refine:
                stages[f"refined {refine}"] = predicted(trainee, refine, seed=seed)
            for stage, maps in stages.items():
                rows.append({**provenance(), what: name, "stage": stage, "size": size, "steps": steps})
                rows[-1] |= {"batch": batch, "options": " ".join(option or ()), "seed": seed}
                rows[-1] |= score(held, maps)
                write_rows(out, rows)
                print(
                    f"{name or stage}: Dice {rows[-1]['dice']:.4f}, folds {rows[-1]['folds_percent']:.4f} %"
                )
        if figure is not None:
            nephi_figure.draw_shapes(held, maps, [(0, 1), (1, 2)], stage, figure)
    return rows


def _some_of(names: Sequence[str], words: str, role: str) -> list[str]:
    chosen = words.split(",")
    for word in chosen:
        if word not in names:
            raise InputError(f"{role}: there is no {word!r}; choose from {', '.join(names)}")
    return chosen


def _check(out: Path | None, figure: Path | None) -> None:
    if out is not None:
        check_writable(out, suffixes=(".csv",), role="--out")
    if figure is not None:
        require_matplotlib()
        check_writable(figure, suffixes=(".png",), role="--figure")


def _show(title: str, rows: list[dict[str, Any]], names: Sequence[str]) -> None:
    table = Table(title=title, title_justify="left")
    for head in (*names, *FIGURES):
        table.add_column(head)
    for row in rows:
        table.add_row(*(str(row[name]) for name in names), *(f"{row[name]:.4g}" for name in FIGURES))
    Console(width=150).print(table)


if __name__ == "__main__":
    run_command(app)
