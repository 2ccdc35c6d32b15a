"""``python -m neuralreg.bench.study``: what NIR's choices do on a real pair.

``samplers``: the paper's Figures 3(d) and 5: downsize, mini-patch and hybrid over the iterations, with memory and time.
``choices``: encoding x activation x intensity sampling, one table.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from neuralreg.bench.curves import Curve, Job, watched
from neuralreg.bench.pairs import RealPair, load_pair
from neuralreg.bench.rows import provenance, run_command, words, write_rows
from neuralreg.bench.scores import SCORES, score
from neuralreg.cli.flags import parse_options
from neuralreg.errors import InputError
from neuralreg.figure import require_matplotlib
from neuralreg.images import read_geometry
from neuralreg.methods.nir import PRESETS
from neuralreg.options import resolve
from neuralreg.samplers import lattice_shape, smallest_stride
from neuralreg.transforms import Transform
from neuralreg.writing import atomic_path, check_writable

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

SAMPLERS: dict[str, dict[str, Any]] = {
    "downsize": {"sampler": "downsize", "hybrid": False},
    "mini-patch": {"sampler": "patches", "hybrid": False},
    "hybrid": {"hybrid": True},
}
COLORS = {"downsize": "tab:blue", "mini-patch": "tab:orange", "hybrid": "tab:green"}
COMMON_RATE = "lr=0.002"
COSTS = ("seconds", "cpu_seconds", "peak_mb", "fit_mb")

PairName = Annotated[
    str, typer.Option("--pair", help="A real pair: brain2mm/vxm-tut1, hippocampus/16-27, ...")
]
Preset = Annotated[str, typer.Option(help="Of NIR: what the study's own options are set in.")]
Out = Annotated[Path, typer.Option(help="Table of all figures (.csv).")]
Extra = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="For all settings; repeat.")
]
Iterations = Annotated[int, typer.Option(help="Of every setting.")]
Seed = Annotated[int, typer.Option(help="Seed of all random numbers.")]
Threads = Annotated[int | None, typer.Option(help="All cores by default.")]


@app.command()
def samplers(
    out: Out,
    figure: Annotated[
        Path | None, typer.Option(help="Picture of the curves (.png; needs matplotlib).")
    ] = None,
    name: PairName = "brain2mm/vxm-tut1",
    preset: Preset = "paper-displacement",
    iterations: Iterations = 300,
    every: Annotated[int, typer.Option(help="Look at the field after so many iterations.")] = 25,
    option: Extra = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Downsize, mini-patch and hybrid: Dice and folds over the iterations, memory and time.

    An iteration sees about as many points with patches as with the lattice.
    """
    check_writable(out, suffixes=(".csv",), role="--out")
    if figure is not None:
        require_matplotlib()
        check_writable(figure, suffixes=(".png",), role="--figure")
    pair = load_pair(name)
    count = {"patches": patches_for(pair, preset, parse_options(option or []))}
    rows: list[dict[str, Any]] = []
    for setting, own in SAMPLERS.items():
        curve = _watch(pair, preset, iterations, every, seed, threads, {**own, **count}, option)
        rows += _rows({**provenance(threads=threads), "pair": name, "sampler": setting}, curve)
        write_rows(out, rows)
    _show(["sampler"], rows)
    if figure is not None:
        draw(rows, start_dice(pair), figure)
    _end(rows)


@app.command()
def choices(
    out: Out,
    name: PairName = "brain2mm/vxm-tut1",
    preset: Preset = "fast",
    iterations: Iterations = 100,
    encodings: Annotated[str, typer.Option(help="With commas between.")] = "grid,fourier,octaves",
    activations: Annotated[str, typer.Option(help="With commas between.")] = "relu,sine,tanh",
    dropouts: Annotated[str, typer.Option(help="Shares of the correlation map that are left out.")] = "0,0.2",
    option: Extra = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Encoding x activation x intensity sampling: one table.

    Layers learn at a rate of 0.002 unless --option lr=... says another: at 0.01 a sine behind a grid runs away.
    """
    check_writable(out, suffixes=(".csv",), role="--out")
    pair = load_pair(name)
    option = [
        *(option or ()),
        *(() if any(word.startswith("lr=") for word in option or ()) else (COMMON_RATE,)),
    ]
    rows: list[dict[str, Any]] = []
    for chosen in itertools.product(*(words(text) for text in (encodings, activations, dropouts))):
        own = dict(zip(("encoding", "activation", "dropout"), chosen, strict=True))
        curve = _watch(pair, preset, iterations, iterations, seed, threads, own, option)
        rows += _rows({**provenance(threads=threads), "pair": name, **own}, curve)
        write_rows(out, rows)
    _show(["encoding", "activation", "dropout"], rows)
    _end(rows)


def start_dice(pair: RealPair) -> float:
    """Dice before any registration."""
    grid = read_geometry(pair.fixed)
    return score(pair, Transform(torch.zeros(grid.ndim, *grid.shape), grid, None, pair.initial))["dice"]


def patches_for(pair: RealPair, preset: str, given: dict[str, Any]) -> int:
    """How many patches have as many points as the downsize sampler's lattice: what the paper compares."""
    known = {name: value for name, value in given.items() if name in ("stride", "max_points", "patch_side")}
    options = resolve(PRESETS, preset, known, "nir")
    grid = read_geometry(pair.fixed).shape
    lattice = lattice_shape(grid, options.stride or smallest_stride(grid, options.max_points))
    side = math.prod(min(options.patch_side, n) for n in grid)
    return max(1, round(math.prod(lattice) / side))


def _watch(
    pair: RealPair,
    preset: str,
    iterations: int,
    every: int,
    seed: int,
    threads: int | None,
    own: dict[str, Any],
    extra: list[str] | None,
) -> Curve:
    """One setting's curve; the study's own options may not be given from outside."""
    given = parse_options(extra or [])
    if double := sorted(given.keys() & own.keys()):
        raise InputError(f"--option: {', '.join(double)} is what the study varies")
    options = {**given, **own, "iterations": iterations}
    return watched(Job(pair, "nir", preset, options, every, seed, threads or torch.get_num_threads()))


def _rows(names: dict[str, Any], curve: Curve) -> list[dict[str, Any]]:
    """Rows of the table: a look each, or one that names the error."""
    if curve.error:
        return [{**names, "error": curve.error}]
    return [{**names, **row, "error": ""} for row in curve.rows]


def _show(names: list[str], rows: list[dict[str, Any]]) -> None:
    """The last look of every setting."""
    last = {tuple(str(row[name]) for name in names): row for row in rows}
    columns = [name for name in ("iteration", *SCORES, *COSTS) if any(name in row for row in rows)]
    table = Table(title=rows[0]["pair"], title_justify="left")
    for head in names:
        table.add_column(head)
    for head in columns:
        table.add_column(head.replace("_", " "), justify="right")
    for key, row in last.items():
        if row["error"]:
            table.add_row(*key, row["error"])
        else:
            table.add_row(*key, *(f"{row[name]:.4g}" for name in columns))
    Console(width=150).print(table)


def _end(rows: list[dict[str, Any]]) -> None:
    if any(row["error"] for row in rows):
        raise typer.Exit(1)


def draw(rows: list[dict[str, Any]], start: float, path: Path) -> None:
    """Four panels: Dice and folds over the iterations, Dice over CPU seconds, memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, ((dice, folds), (time, memory)) = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    found = [name for name in SAMPLERS if any(row["sampler"] == name and not row["error"] for row in rows)]
    for name in found:
        mine = [row for row in rows if row["sampler"] == name]
        style = {"label": name, "color": COLORS[name], "marker": "."}
        iterations = [row["iteration"] for row in mine]
        dice.plot(iterations, [row["dice"] for row in mine], **style)
        folds.plot(iterations, [row["folds_percent_mask"] for row in mine], **style)
        time.plot([row["cpu_seconds"] for row in mine], [row["dice"] for row in mine], **style)
        memory.bar(name, mine[-1]["fit_mb"], color=COLORS[name])
    for axes, across, up in (
        (dice, "iteration", "mean Dice"),
        (folds, "iteration", "folds inside the mask (%)"),
        (time, "CPU seconds", "mean Dice"),
        (memory, "", "memory that the fit adds, peak (MB)"),
    ):
        axes.set(xlabel=across, ylabel=up)
    for axes in (dice, time):
        axes.axhline(start, color="gray", linestyle=":", label="before")
    dice.legend()
    picture.suptitle(rows[0]["pair"])
    with atomic_path(path) as temporary:
        picture.savefig(temporary, dpi=120)
    pyplot.close(picture)


if __name__ == "__main__":
    run_command(app)
