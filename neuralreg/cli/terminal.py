"""What the commands share on the terminal: the progress bar, the closing table, the words that they were given."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import typer

Progress = Callable[[int, int, float, str], None]


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Progress | None]:
    """Yields a callback that draws a bar with stage, loss and time left; None where stderr is no terminal.

    The callback takes (iteration done, iterations in all, loss, stage), iterations counted from 1.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None, loss="-")
        last = ""

        def update(iteration: int, total: int, loss: float, stage: str) -> None:
            nonlocal last
            if stage != last:  # a new stage counts anew, and so must the estimate of the time left
                bar.reset(task, total=total, description=stage)
            last = stage
            shown = f"{loss:.4f}" if math.isfinite(loss) else "-"
            bar.update(task, completed=iteration, total=total, description=stage, loss=shown)

        yield update


def command_line(context: typer.Context) -> str:
    """The command as it was given, for a shell."""
    return shlex.join(["neuralreg", *(context.find_root().obj or ())])


def print_table(title: str, rows: Iterable[tuple[str, ...]], heads: tuple[str, ...] = ()) -> None:
    """Print a table on stdout; no cell is ever cut, so paths stay whole."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_header=bool(heads), pad_edge=False)
    rows = list(rows)
    for index in range(max(len(row) for row in rows)):
        head = heads[index] if index < len(heads) else ""
        table.add_column(head, justify="right" if heads and index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: no markup in file names
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # a pipe has no width to fold at
    if title:  # not the table's own, which would be folded at the table's width
        console.print(Text(title, style="bold"))
    console.print(table)
