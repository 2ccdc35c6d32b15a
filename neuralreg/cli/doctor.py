"""`neuralreg doctor`: is this installation sound, and what serves what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show versions, hardware and backends, and check every op against the float64 reference.

    The exit code is 0 when every check passes and 1 when one fails.
    """
    from neuralreg.doctor import examine

    report = examine()
    if as_json:
        from neuralreg.outputs import json_text

        typer.echo(json_text(report), nl=False)
    else:
        _show(report)
    if not report["healthy"]:
        raise typer.Exit(1)


def _show(report: dict[str, Any]) -> None:
    _table("Versions", report["versions"].items())
    _table("Hardware", [(name, _cell(value)) for name, value in report["hardware"].items()])
    if report["settings"]:
        _table("Settings from the environment", report["settings"].items())
    rows: list[tuple[str, ...]] = []
    for name, backend in report["backends"].items():
        state = "serves" if backend["available"] else "cannot serve"
        rows.append((name, state, backend["reason"] or backend["detail"]))
    _table("Backends", rows, ("backend", "here", "why not, or with what"))
    rows = []
    for service in report["services"]:
        refused: dict[str, list[str]] = {}
        for name, reason in service["others"].items():
            here = report["backends"][name]["available"]
            refused.setdefault(reason if here else "cannot serve, see above", []).append(name)
        others = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in refused.items())
        rows.append((service["op"], service["device"], service["backend"] or "none", others))
    _table("What serves each op", rows, ("op", "device", "backend", "why not the others"))
    rows = []
    for check in report["checks"]:
        value = f"{check['forward_error']:.1e} (<= {check['forward_tolerance']:.0e})"
        gradient = f"{check['gradient_error']:.1e} (<= {check['gradient_tolerance']:.0e})"
        if check["failure"]:
            value, gradient = check["failure"], ""
        outcome = "ok" if check["passed"] else "FAILED"
        rows.append((check["op"], check["device"], check["backend"] or "none", value, gradient, outcome))
    heads = ("op", "device", "backend", "value", "gradient", "")
    _table("Errors against the float64 reference, with their tolerances", rows, heads)
    typer.echo(report["verdict"])


def _table(title: str, rows: Iterable[tuple[str, ...]], heads: tuple[str, ...] = ("", "")) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shape = box.SIMPLE_HEAD if any(heads) else box.SIMPLE
    table = Table(title=title, title_justify="left", box=shape, show_header=any(heads), pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: no markup in reasons
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # a pipe has no width to fold at
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return str(value)
