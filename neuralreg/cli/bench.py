"""`neuralreg bench`: measure this machine, compare two tables of measurements, and report them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuralreg.bench.suites import SUITES

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure kernels, iterations, memory and whole registrations on this machine.",
)

_PLACE, _WORK = "Where", "What"


def run_suite(
    context: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small work, few rounds: minutes for all suites.")
    ] = False,
    backend: Annotated[
        str | None, typer.Option(help="reference, cpu, cuda, triton.", rich_help_panel=_PLACE)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N.", rich_help_panel=_PLACE)] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.", rich_help_panel=_PLACE)] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; all cores by default.", rich_help_panel=_PLACE)
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Volumes: 96 or 160x192x224, commas between.", rich_help_panel=_WORK)
    ] = None,
    points: Annotated[
        str | None, typer.Option(help="Points an iteration, commas between.", rich_help_panel=_WORK)
    ] = None,
    pair: Annotated[
        str | None, typer.Option(help="Real pairs or sets, commas between.", rich_help_panel=_WORK)
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(help="Words of the other contenders; none: ours alone.", rich_help_panel=_WORK),
    ] = None,
    filter: Annotated[
        str | None, typer.Option(help="Only what contains this in its name.", rich_help_panel=_WORK)
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Of the rounds of a case, or a run.", rich_help_panel=_WORK)
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory that a process may take: 8GB.", rich_help_panel=_WORK),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Say which volumes fit into this: 8GB.", rich_help_panel=_WORK),
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Answer --budget by trying sizes.", rich_help_panel=_WORK)
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for a table a suite, or one .csv file.")] = Path(
        "neuralreg-bench"
    ),
) -> None:
    """Run one suite, or all."""
    from rich.console import Console

    from neuralreg.bench.rows import OURS
    from neuralreg.bench.suites.plan import Settings
    from neuralreg.bench.suites.runner import run

    settings = Settings(
        *(quick, backend, device, dtype, size, peers, filter, threads, seconds, points, limit, budget, pair),
        bisect,
    )
    name = context.command.name or ""
    rows = run(list(SUITES) if name == "all" else [name], settings, out, Console(width=150))
    if any(
        row.get("failed") and not row.get("beyond_limit") and row["contender"].startswith(OURS)
        for row in rows
    ):
        raise typer.Exit(1)


for _name, _help in {**SUITES, "all": "All suites, one after the other."}.items():
    app.command(_name, help=_help)(run_suite)


@app.command("compare")
def compare_tables(
    before: Annotated[Path, typer.Argument(help="Table of measurements (.csv).")],
    after: Annotated[Path, typer.Argument(help="Table of the same suites, measured later.")],
) -> None:
    """Say what differs beyond the spread of both; exit code 1 where something has become slower, larger or wrong."""
    from neuralreg.bench.compare import compare
    from neuralreg.cli.terminal import print_table

    found, notes = compare(before, after)
    if found:
        print_table("", [(one.kind, one.name, one.words) for one in found])
    for note in notes:
        print(note)
    regressions = sum(one.regression for one in found)
    print(f"{regressions} regressions" if regressions else "no regression")
    if regressions:
        raise typer.Exit(1)


@app.command("report")
def write_report(
    results: Annotated[Path, typer.Option(help="Folder of tables of measurements.")] = Path("bench/results"),
    readme: Annotated[
        Path | None,
        typer.Option(help="Rewrite the tables between the markers of README.md or benchmarks.md."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Draw the figures into this folder.")] = None,
) -> None:
    """Draw the figures and rewrite the README's tables, all from kept rows."""
    from neuralreg.bench.report import rewrite_file
    from neuralreg.bench.tables import PAGES
    from neuralreg.errors import InputError

    if readme is None and out is None:
        raise InputError("bench report: give --readme, --out, or both")
    if readme is not None:
        if readme.name not in PAGES:
            raise InputError(f"--readme {readme}: there are tables for {', '.join(PAGES)}")
        print(
            f"{readme}: {'rewritten' if rewrite_file(readme, PAGES[readme.name], results) else 'unchanged'}"
        )
    if out is not None:
        from neuralreg.bench.figures import draw_all

        for path in draw_all(results, out):
            print(f"{path} drawn")
