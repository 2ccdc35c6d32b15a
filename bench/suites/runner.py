"""Runs suites: the plan first, a bar over its items, a row on disk as soon as it is measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuralreg.bench.process import end_with_clean_up
from neuralreg.bench.rows import COMMON, MEASURES, provenance, using_threads, versions, write_rows
from neuralreg.bench.suites import SUITES
from neuralreg.bench.suites.plan import Item, Plan, Row, Settings, plan_of
from neuralreg.errors import InputError
from neuralreg.kernels import use_backend
from neuralreg.machine import cpu_name
from neuralreg.writing import check_writable

DIGITS = {"error": "{:.1e}", "median_ms": "{:.2f}", "p20_ms": "{:.2f}", "p80_ms": "{:.2f}"}


def run(names: list[str], settings: Settings, out: Path | None, console: Console) -> list[Row]:
    """All rows of the suites; written below ``out``, a folder (a file a suite) or a .csv file.

    Raises:
        InputError: nothing to run, an option that cannot be honoured, a place that cannot be written.
    """
    end_with_clean_up()
    plans, files = {}, {}
    for name in names:
        try:
            plans[name] = plan_of(name, settings)
        except InputError as error:
            if len(names) == 1:
                raise
            console.print(f"suite {name} is left out: {error}", markup=False)
    if not plans:
        raise InputError("no suite is left to run")
    files = _files(out, list(plans))
    for name, plan in plans.items():
        show_plan(console, name, plan, files.get(name))
    kept: dict[Path | None, list[Row]] = {}
    machine = _machine(settings)
    found: list[Row] = []
    with using_threads(settings.threads), _bar(console) as (line, advance):
        backend = use_backend(settings.backend) if settings.backend else nullcontext()
        with backend:
            for name, plan in plans.items():
                mine: list[Row] = []
                for item in plan.items:
                    advance(f"{name}: {item.name}", plans)
                    for row in _rows_of(item):
                        mine.append({**machine, "suite": name, **row})
                        rows = kept.setdefault(files.get(name), [])
                        rows.append(mine[-1])
                        write_rows(files.get(name), rows, _columns(rows))
                        line.print(Text(words_of(mine[-1])), soft_wrap=True)
                if not mine:
                    raise InputError(f"suite {name}: no case's name contains {settings.filter!r}")
                show_rows(line, name, mine)
                for words in plan.closing(mine) if plan.closing else ():
                    line.print(words, markup=False, soft_wrap=True)
                found += mine
    for path in dict.fromkeys(files.values()):
        console.print(f"rows in {path}", markup=False, soft_wrap=True)
    return found


def _rows_of(item: Item) -> Iterator[Row]:
    """The item's rows; where its work does not fit what was asked for, one that says why."""
    try:
        yield from item.run()
    except InputError as error:
        yield {"case": item.name, "contender": "neuralreg", "failed": str(error)}


def show_plan(console: Console, name: str, plan: Plan, path: Path | None) -> None:
    """What will run, what cannot and why, and where the rows go."""
    table = Table(title=f"{name}: {SUITES[name]}", title_justify="left", show_header=False, box=None)
    for item in plan.items:
        table.add_row("will run", Text(item.name), Text(item.what))
    for left, reason in plan.left_out:
        table.add_row("left out", Text(left), Text(reason), style="dim")
    if path is not None:
        table.add_row("rows", "", Text(str(path)))
    console.print(table)


def show_rows(console: Console, suite: str, rows: list[Row]) -> None:
    """A table a case, ratios to the first contender; one out of tolerance is shown and not ranked."""
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == case]
        if not any("median_ms" in row for row in mine):
            continue
        table = Table(title=Text(f"{suite}: {case}"), title_justify="left")
        heads = ("contender", "error", "median ms", "p20", "p80", "CPU ms", "MB extra", "x floor", "x ours")
        for head in heads:
            table.add_column(head, justify="left" if head == "contender" else "right")
        for row in mine:
            table.add_row(*cells(row, mine[0]))
        console.print(table)


def cells(row: Row, ours: Row) -> list[str]:
    """A line of the table of a case."""
    if row.get("failed"):
        return [row["contender"], str(row["failed"])]
    times = [f"{row[key]:.2f}" for key in ("median_ms", "p20_ms", "p80_ms")]
    if row.get("part"):
        return [f"  {row['part']}", "", *times]
    ranked = row.get("in_tolerance") is not False
    floor, error = row.get("floor_ms"), row.get("error", float("nan"))
    return [
        row["contender"],
        ("" if error != error else f"{error:.1e}") + ("" if ranked else " out of tolerance"),
        *times,
        f"{row['cpu_ms']:.1f}" if "cpu_ms" in row else "",
        f"{row['extra_mb']:.0f}",
        f"{row['median_ms'] / floor:.1f}" if floor else "",
        f"{row['median_ms'] / ours['median_ms']:.2f}" if ranked and "median_ms" in ours else "-",
    ]


def words_of(row: Row) -> str:
    """A row for the eye."""
    known = (*COMMON, "rounds", "clock")
    own = {k: v for k, v in row.items() if k not in known and v not in ("", None)}
    figures = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in own.items())
    name = ", ".join(filter(None, (row["case"], row["contender"], row.get("part", ""))))
    return name + (f", {figures}" if figures else "")


def _machine(settings: Settings) -> dict[str, Any]:
    device = settings.where
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    given = [f"{name}={getattr(settings, name)}" for name in settings.given()]
    common = {
        "device": str(device),
        "dtype": settings.dtype or "float32",
        "backend": settings.backend or "auto",
    }
    return {
        **provenance(hardware, settings.threads),
        "versions": versions(device),
        "settings": " ".join(given),
        **common,
    }


def _columns(rows: list[Row]) -> list[str]:
    """The common columns, those of the measurements, and whatever a suite adds."""
    names = dict.fromkeys((*COMMON, *MEASURES))
    return list(names | dict.fromkeys(name for row in rows for name in row))


def _files(out: Path | None, names: list[str]) -> dict[str, Path]:
    """The file of every suite: ``out`` itself where it is a .csv, files with date and time in the folder ``out``."""
    if out is None:
        return {}
    if out.suffix == ".csv":
        check_writable(out, suffixes=(".csv",), role="--out")
        return dict.fromkeys(names, out)
    if out.suffix and not out.is_dir():
        raise InputError(f"--out {out}: give a folder or a .csv file")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from None
    stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    return {name: check_writable(out / f"{stamp}-{name}.csv", suffixes=(".csv",)) for name in names}


@contextmanager
def _bar(console: Console) -> Iterator[tuple[Console, Any]]:
    """A bar over all items where stderr is a terminal; the console that lines are printed on beside it."""
    if not sys.stderr.isatty():
        yield console, lambda what, plans: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        begun = 0

        def advance(what: str, plans: dict[str, Plan]) -> None:
            nonlocal begun
            total = sum(len(plan.items) for plan in plans.values())
            bar.update(task, description=what, completed=begun, total=total)
            begun += 1

        yield console, advance
