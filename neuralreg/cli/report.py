"""`neuralreg report`: the page of a transform that is on disk, whatever made it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    context: typer.Context,
    fixed: Annotated[Path, typer.Option(help="The fixed image.")],
    moving: Annotated[Path, typer.Option(help="The moving image.")],
    transform: Annotated[Path, typer.Option(help="Transform, fixed to moving, of neuralreg or of ITK.")],
    out: Annotated[Path, typer.Option(help="The page (.html); opens without a network.")],
    summary: Annotated[
        Path | None,
        typer.Option(
            help="The .json that `neuralreg register --summary` or `batch` wrote: settings and figures."
        ),
    ] = None,
) -> None:
    """One self-contained page about a registration: flicker, differences, grid, log Jacobian, figures, settings."""
    from neuralreg.cli.terminal import command_line
    from neuralreg.images import check_writable
    from neuralreg.report import registration_report, require_report, shown

    require_report()
    check_writable(out, suffixes=(".html",), role="--out")
    registration_report(shown(fixed, moving, transform, summary), out, command_line(context))
    print(f"wrote {out}")
