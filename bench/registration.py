"""``python -m neuralreg.bench.registration``: tools on real pairs, each run in a process of its own, scored alike.

Seconds and memory are those of the whole process: imports, reading, registration and writing, the same for all tools.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from neuralreg.bench.pairs import RealPair, find_names, load_pair
from neuralreg.bench.process import run
from neuralreg.bench.rows import PROVENANCE, provenance, run_command, write_rows
from neuralreg.bench.scores import SCORES, score
from neuralreg.bench.tools import BASELINES, Settings, Task, Tool, parse_tools
from neuralreg.errors import InputError
from neuralreg.writing import check_writable

COSTS = ("wall_s", "cpu_s", "peak_mb", "area_mb_s")
COLUMNS = (
    *(*PROVENANCE, "pair", "tool", "iterations", "options", "seed", "masks"),
    *SCORES,
    *COSTS,
    "error",
)
DIGITS = {"folds_percent": 4, "folds_percent_mask": 4, "wall_s": 1, "cpu_s": 1, "peak_mb": 0, "area_mb_s": 0}


def main(
    pairs: Annotated[
        str, typer.Option(help="Sets or single pairs with commas between: brain1mm, lungct, ...")
    ],
    tools: Annotated[
        str, typer.Option(help="identity, greedy:4x4x4, plain-nir, nir:fast, nir:fast[levels=8;lr=0.02], ...")
    ],
    out: Annotated[Path | None, typer.Option(help="Write one row a pair and tool to this .csv file.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Setting of every neuralreg tool; repeat.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Of the neuralreg tools and plain-nir; their presets' own by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the tools that take one: all but greedy.")] = 0,
    threads: Annotated[int | None, typer.Option(help="A tool; all cores by default.")] = None,
    masks: Annotated[
        bool, typer.Option(help="Give the tools the fixed mask, which else only scores.")
    ] = False,
    keep: Annotated[Path | None, typer.Option(help="Keep transforms and summaries in this folder.")] = None,
) -> None:
    """Register real pairs with several tools; a row a pair and tool, and the means over the pairs."""
    if out is not None:
        check_writable(out, suffixes=(".csv",), role="--out")
    console = Console(width=170)
    names = find_names(pairs)
    chosen = []
    for tool in parse_tools(tools):
        if reason := tool.missing():
            console.print(f"{tool} is skipped: {reason}", markup=False)
        else:
            chosen.append(tool)
    settings = Settings(iterations, seed, threads or torch.get_num_threads(), tuple(option or ()), masks)
    rows: list[dict[str, Any]] = []
    for name in names:
        pair = load_pair(name)
        for tool in chosen:
            rows.append(one_row(pair, tool, settings, keep))
            console.print(line(rows[-1]), markup=False, highlight=False, soft_wrap=True)
            if out is not None:  # after every run: long series get interrupted
                write_rows(out, rows, COLUMNS)
    show(console, rows)
    if any(row["error"] for row in rows):
        raise typer.Exit(1)


def one_row(pair: RealPair, tool: Tool, settings: Settings, keep: Path | None = None) -> dict[str, Any]:
    """Runs one tool on one pair and scores what it leaves; a tool that fails gives a row with its last words."""
    neural = tool.ours or tool.kind in BASELINES
    row: dict[str, Any] = {
        **dict.fromkeys(COLUMNS, ""),
        **provenance(threads=settings.threads),
        "pair": pair.name,
        "tool": str(tool),
        "iterations": settings.iterations if neural and settings.iterations is not None else "",
        "options": " ".join(settings.options) if neural else "",
        "seed": settings.seed if neural else "",
        "masks": settings.masks,
    }
    with tempfile.TemporaryDirectory() as folder:
        task = Task.write(pair, Path(folder))
        try:
            command = tool.command(task, settings)
        except InputError as error:  # a pair that the tool cannot take
            return row | {"error": str(error)}
        if command is not None:
            cost = run(command, {"OMP_NUM_THREADS": str(settings.threads)})
            row |= {"wall_s": cost.wall_seconds, "cpu_s": cost.cpu_seconds, "peak_mb": cost.peak_mb}
            row["area_mb_s"] = "" if math.isnan(cost.area_mb_s) else cost.area_mb_s
            if cost.code != 0 or not task.result.is_file():
                words = cost.output.strip().splitlines() or ["no output"]
                return row | {"error": f"exit code {cost.code}: {words[-1]}"}
        row |= score(pair, tool.transform(task))
        if keep is not None and command is not None:
            _keep(task, keep, f"{pair.name}_{tool}")
    return row


def _keep(task: Task, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = "".join(c if c.isalnum() or c in "-_=." else "_" for c in name)
    for file in (task.result, task.folder / "summary.json"):
        if file.is_file():
            shutil.copyfile(file, folder / f"{stem}_{file.name}")


def line(row: dict[str, Any]) -> str:
    """A row for the eye."""
    if row["error"]:
        return f"{row['pair']} {row['tool']}: {row['error']}"
    figures = [f"{name} {_cell(name, row[name])}" for name in (*SCORES, *COSTS) if row[name] != ""]
    return f"{row['pair']} {row['tool']}: {', '.join(figures)}"


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """One table a set of pairs: the means over the pairs that a tool finished."""
    for group in dict.fromkeys(row["pair"].partition("/")[0] for row in rows):
        mine = [row for row in rows if row["pair"].partition("/")[0] == group and not row["error"]]
        columns = [name for name in (*SCORES, *COSTS) if any(row[name] != "" for row in mine)]
        table = Table(title=f"{group}: means over the pairs", title_justify="left")
        table.add_column("tool", overflow="fold")
        for head in ("pairs", *columns):
            table.add_column(head, justify="right")
        for tool in dict.fromkeys(row["tool"] for row in mine):
            one = [row for row in mine if row["tool"] == tool]
            cells = [_mean(name, [row[name] for row in one if row[name] != ""]) for name in columns]
            table.add_row(tool.replace("[", r"\["), str(len(one)), *cells)
        console.print(table)


def _mean(name: str, values: list[float]) -> str:
    return _cell(name, sum(values) / len(values)) if values else ""


def _cell(name: str, value: float) -> str:
    return f"{value:.{DIGITS.get(name, 3)}f}"


if __name__ == "__main__":
    run_command(lambda: typer.run(main))
