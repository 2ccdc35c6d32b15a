"""``python -m neuralreg.bench.ofg``: what on-the-fly guidance does, and what it costs.

``modes``: unsupervised, OFG, self-training, optimised self-training and weak supervision at equal CPU time.
``steps``: the number of inner steps. ``optimiser``: the inner loop alone on a pair. ``cost``: an iteration with
guidance beside one without.
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from neuralreg.bench.ofg_cost import DIGITS, guidance_cost, optimiser_alone, start_fields
from neuralreg.bench.ofg_runs import SCORES, Run, Split, hippocampi, rows_of, split
from neuralreg.bench.rows import PROVENANCE, provenance, run_command, words, write_rows
from neuralreg.cli.flags import parse_options
from neuralreg.errors import InputError, NeuralregError
from neuralreg.figure import require_matplotlib
from neuralreg.methods.ofg_options import MODES
from neuralreg.writing import atomic_path, check_writable

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

KEY = ("network", "mode", "setting", "seed", "cpu_budget", "options")
COLUMNS = (
    *(*PROVENANCE, "data", *KEY, "look", "share", "steps", "teacher_steps"),
    *("cpu_seconds", "wall_seconds", "pairs", *SCORES, "predict_s", "error"),
)

Out = Annotated[
    Path, typer.Option(help="Table of all figures (.csv); rows that it has are not computed again.")
]
Folder = Annotated[Path, typer.Option(help="Where the runs are kept, to go on with after an interruption.")]
Extra = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Of every training; repeat.")
]
Seconds = Annotated[float, typer.Option(help="CPU seconds of a training, that of a teacher included.")]
Threads = Annotated[int, typer.Option(help="Of a training.")]
Data = Annotated[
    Path | None, typer.Option(help="A data set with labels that `train` reads; the hippocampi by default.")
]
Test = Annotated[int, typer.Option(help="The last subjects by name, all of whose ordered pairs are scored.")]


@app.command()
def modes(
    out: Out,
    runs: Folder,
    figure: Annotated[
        Path | None, typer.Option(help="Picture of the curves (.png; needs matplotlib).")
    ] = None,
    mode: Annotated[str, typer.Option(help="With commas between.")] = ",".join(MODES),
    network: Annotated[str, typer.Option(help="With commas between.")] = "voxelmorph",
    seeds: Annotated[str, typer.Option(help="With commas between.")] = "0",
    cpu_seconds: Seconds = 300,
    option: Extra = None,
    own: Annotated[
        list[str] | None, typer.Option(metavar="MODE:NAME=VALUE", help="Of one mode's trainings; repeat.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Of ofg.")] = "fast",
    looks: Annotated[int, typer.Option(help="Points of a curve.")] = 5,
    threads: Threads = 1,
    data: Data = None,
    test: Test = 12,
) -> None:
    """Trainings of several modes, networks and seeds, one after the other, at equal CPU time."""
    if figure is not None:
        require_matplotlib()
        check_writable(figure, suffixes=(".png",), role="--figure")
    common, special = parse_options(option or [], own=()), parse_own(own or [])
    jobs = [
        Run(
            "",
            {**common, "network": which, "mode": name, **special.get(name, {})},
            int(seed),
            cpu_seconds,
            threads,
            looks,
            preset,
        )
        for which, seed, name in itertools.product(words(network), words(seeds), words(mode))
    ]
    rows = series(jobs, out, runs, data, test)
    show(rows, ("network", "mode", "setting", "cpu_budget"))
    if figure is not None:
        draw(rows, figure)


@app.command()
def steps(
    out: Out,
    runs: Folder,
    counts: Annotated[str, typer.Option(help="Inner steps, with commas between.")] = "1,2,5,10,20",
    network: Annotated[str, typer.Option(help="Of NETWORKS, or module:Class.")] = "voxelmorph",
    seeds: Annotated[str, typer.Option(help="With commas between.")] = "0",
    cpu_seconds: Seconds = 300,
    option: Extra = None,
    preset: Annotated[str, typer.Option(help="Of ofg.")] = "fast",
    threads: Threads = 1,
    data: Data = None,
    test: Test = 12,
) -> None:
    """OFG with different numbers of inner steps at equal CPU time."""
    common = parse_options(option or [], own=())
    jobs = [
        Run(
            f"steps={count}",
            {**common, "network": network, "mode": "ofg", "steps": count},
            int(seed),
            cpu_seconds,
            threads,
            1,
            preset,
        )
        for seed, count in itertools.product(words(seeds), words(counts))
    ]
    show(series(jobs, out, runs, data, test), ("network", "mode", "setting", "cpu_budget"))


@app.command()
def optimiser(
    out: Out,
    pair: Annotated[str, typer.Option(help="A real pair.")] = "brain1mm/vxm-tut1",
    starts: Annotated[str, typer.Option(help="Of zero, random, parameters, with commas between.")] = (
        "zero,random,parameters"
    ),
    counts: Annotated[str, typer.Option(help="Steps after which Dice is taken, with commas between.")] = (
        "0,5,10,20,50,100"
    ),
    rounds: Annotated[int, typer.Option(help="Timings of a step, ours and torch's in turn; 0: none.")] = 5,
    threads: Annotated[int | None, typer.Option(help="All cores by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random starts.")] = 0,
) -> None:
    """The inner loop alone: Dice and folds over steps from a zero field, a random one, and an untrained network's."""
    check_writable(out, suffixes=(".csv",), role="--out")
    taken = [int(count) for count in words(counts)]
    names = words(starts)
    if unknown := sorted(set(names) - set(start_fields)):
        raise InputError(f"--starts: {', '.join(unknown)} is none of {', '.join(start_fields)}")
    machine = {**provenance(threads=threads), "pair": pair}
    rows = []
    for found in optimiser_alone(pair, names, taken, rounds, machine["threads"], seed):
        rows.append({**machine, **found})
        write_rows(out, rows)
        print_row(found)


@app.command()
def cost(
    out: Out,
    size: Annotated[int, typer.Option(help="Voxels along every axis.")] = 96,
    network: Annotated[str, typer.Option(help="Of NETWORKS, or module:Class.")] = "voxelmorph",
    inner: Annotated[int, typer.Option("--steps", help="Of the guidance.")] = 10,
    rounds: Annotated[int, typer.Option(help="Iterations of every contender, in turn.")] = 5,
    threads: Annotated[int | None, typer.Option(help="All cores by default.")] = None,
) -> None:
    """A training iteration with guidance, by our inner loop and by torch's, beside one without."""
    check_writable(out, suffixes=(".csv",), role="--out")
    machine = provenance(threads=threads)
    rows = [{**machine, **row} for row in guidance_cost(size, network, inner, rounds, machine["threads"])]
    write_rows(out, rows)
    for row in rows:
        print_row({name: value for name, value in row.items() if name not in machine})


def series(jobs: list[Run], out: Path, folder: Path, path: Path | None, test: int) -> list[dict[str, Any]]:
    """All rows of the table: those that it had, and those of the trainings that it lacked; written after each."""
    check_writable(out, suffixes=(".csv",), role="--out")
    rows = read(out) if out.exists() else []
    data: Split | None = None
    for job in jobs:
        key = key_of(job)
        if any(all(str(row.get(name)) == str(key[name]) for name in KEY) for row in rows if not row["error"]):
            continue
        data = data or (hippocampi(test) if path is None else split(path, test))
        name = "hippocampus" if path is None else path.stem
        machine = {**provenance(threads=job.threads), "data": name, **key}
        try:
            found = [{**machine, **row, "error": ""} for row in rows_of(job, data, folder / stem(job))]
        except NeuralregError as error:
            found = [{**machine, "look": "test", "error": str(error)}]
        rows += found
        write_rows(out, rows, COLUMNS)
        print_row(
            {name: found[-1].get(name, "") for name in (*KEY, "steps", "cpu_seconds", *SCORES, "error")}
        )
    return rows


def key_of(job: Run) -> dict[str, Any]:
    """What tells a training from all others."""
    left = {k: v for k, v in sorted(job.options.items()) if k not in ("network", "mode")}
    return {
        "network": job.options["network"],
        "mode": job.options["mode"],
        "setting": job.name,
        "seed": job.seed,
        "cpu_budget": f"{job.cpu_seconds:g}",
        "options": " ".join([f"preset={job.preset}", *(f"{k}={v}" for k, v in left.items())]),
    }


def stem(job: Run) -> str:
    """Name of a training's folder."""
    words = "_".join(str(value) for value in key_of(job).values() if value != "")
    return "".join(c if c.isalnum() or c in "-_=." else "-" for c in words)


def parse_own(given: list[str]) -> dict[str, dict[str, Any]]:
    """Options of single modes."""
    found: dict[str, dict[str, Any]] = {}
    for text in given:
        mode, colon, rest = text.partition(":")
        if not colon or mode not in MODES:
            raise InputError(f"--own {text}: expected MODE:NAME=VALUE with one of {', '.join(MODES)}")
        found.setdefault(mode, {}).update(parse_options([rest], own=()))
    return found


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def print_row(row: dict[str, Any]) -> None:
    words = [f"{name} {_cell(name, value)}" for name, value in row.items() if value != ""]
    print(", ".join(words), flush=True)


def _cell(name: str, value: Any) -> str:
    return f"{value:.{DIGITS.get(name, 4)}g}" if isinstance(value, float) else str(value)


def show(rows: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    """Means over the seeds of the last looks, and the spread of their Dice."""
    table = Table(title="test pairs: means over the seeds", title_justify="left")
    for head in (*names, "seeds", "steps", "dice", "spread", *SCORES[2:]):
        table.add_column(head.replace("_", " "))
    last = [row for row in rows if row["look"] == "test" and not row["error"]]
    for key in dict.fromkeys(tuple(str(row[name]) for name in names) for row in last):
        mine = [row for row in last if tuple(str(row[name]) for name in names) == key]
        means = [sum(float(row[name]) for row in mine) / len(mine) for name in ("steps", "dice", *SCORES[2:])]
        dice = [float(row["dice"]) for row in mine]
        figures = [f"{means[0]:.0f}", f"{means[1]:.4f}", f"{max(dice) - min(dice):.4f}"]
        table.add_row(*key, str(len(mine)), *figures, *(f"{value:.4g}" for value in means[2:]))
    Console(width=150).print(table)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Dice, folds and smoothness over CPU seconds: a line a mode and network, the mean over the seeds in a band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, panels = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    curve = [row for row in rows if row["look"] == "curve" and not row["error"]]
    for key in dict.fromkeys((row["network"], row["mode"]) for row in curve):
        mine = [row for row in curve if (row["network"], row["mode"]) == key]
        shares = sorted({float(row["share"]) for row in mine})
        seconds = [share * float(mine[0]["cpu_budget"]) for share in shares]
        for axes, name in zip(panels, ("dice", "folds_percent_mask", "sdlogj_mask"), strict=True):
            values = [[float(row[name]) for row in mine if float(row["share"]) == share] for share in shares]
            (drawn,) = axes.plot(
                seconds, [sum(v) / len(v) for v in values], marker=".", label=f"{key[1]}, {key[0]}"
            )
            axes.fill_between(
                seconds,
                [min(v) for v in values],
                [max(v) for v in values],
                color=drawn.get_color(),
                alpha=0.2,
            )
    for axes, up in zip(panels, ("mean Dice", "folds inside the labels (%)", "SDlogJ"), strict=True):
        axes.set(xlabel="CPU seconds of training", ylabel=up)
    panels[0].legend(fontsize=8)
    with atomic_path(path) as temporary:
        picture.savefig(temporary, dpi=120, format="png")
    pyplot.close(picture)


if __name__ == "__main__":
    run_command(app)
