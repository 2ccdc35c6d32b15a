"""`neuralreg register`: two images in, a transform and whatever else is asked for out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuralreg.cli.flags import INPUTS, RUN, RegisterFlags, with_register_flags
from neuralreg.cli.terminal import command_line, print_table, progress_bar
from neuralreg.errors import InputError
from neuralreg.outputs import (
    summary_rows,
    write_field,
    write_figure,
    write_inverse,
    write_report,
    write_start,
    write_summary,
    write_together,
    write_transform,
    write_warped,
)

if TYPE_CHECKING:
    from neuralreg.registration import Registration
    from neuralreg.sharded.registration import Part

NIFTI = (".nii", ".nii.gz")

_OUTPUTS = "Outputs (at least one)"


@dataclass(frozen=True)
class Output:
    """One file to be written: its flag, its path, the suffixes that it may have, and what writes it."""

    flag: str
    path: Path
    suffixes: tuple[str, ...]
    write: Callable[[Registration, Path], None]


@with_register_flags
def command(
    *,
    context: typer.Context,
    fixed: Annotated[
        Path,
        typer.Option(help="The image whose grid the result has (.nii, .nii.gz).", rich_help_panel=INPUTS),
    ],
    moving: Annotated[Path, typer.Option(help="The image that is deformed onto it.", rich_help_panel=INPUTS)],
    fixed_mask: Annotated[
        Path | None,
        typer.Option(help="Where in the fixed image to compare: voxels > 0.", rich_help_panel=INPUTS),
    ] = None,
    moving_mask: Annotated[
        Path | None,
        typer.Option(help="Where in the moving image to compare: voxels > 0.", rich_help_panel=INPUTS),
    ] = None,
    initial_transform: Annotated[
        Path | None,
        typer.Option(
            help="Where to start, fixed to moving: a transform file of any kind that neuralreg convert reads.",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    prior: Annotated[
        Path | None,
        typer.Option(
            help="A transform that comes behind the new map: its file, such as --transform-out of a coarse run.",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    how: RegisterFlags,
    margin: Annotated[
        float | None,
        typer.Option(
            metavar="MM",
            help="Under torchrun: how far points may move before more of the moving image is read; 10.",
            rich_help_panel=RUN,
        ),
    ] = None,
    transform_out: Annotated[
        Path | None,
        typer.Option(
            help="Transform, fixed to moving points: ITK displacement field (.nii.gz, LPS mm), ITK composite (.h5), "
            "or what else neuralreg convert knows by its suffix.",
            rich_help_panel=_OUTPUTS,
        ),
    ] = None,
    inverse_out: Annotated[
        Path | None,
        typer.Option(
            help="Its inverse, on the moving grid, the format by its suffix too.", rich_help_panel=_OUTPUTS
        ),
    ] = None,
    start_out: Annotated[
        Path | None,
        typer.Option(
            help="The affine that the start found (ITK text: .tfm or .txt, LPS mm).", rich_help_panel=_OUTPUTS
        ),
    ] = None,
    warped_out: Annotated[
        Path | None, typer.Option(help="Moving image on the fixed grid (.nii.gz).", rich_help_panel=_OUTPUTS)
    ] = None,
    field_out: Annotated[
        Path | None, typer.Option(help="The neural field itself (.pt).", rich_help_panel=_OUTPUTS)
    ] = None,
    figure_out: Annotated[
        Path | None,
        typer.Option(help="Quality-control picture (.png; needs matplotlib).", rich_help_panel=_OUTPUTS),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="One self-contained page with pictures, curves and all numbers (.html; needs jinja2 and matplotlib).",
            rich_help_panel=_OUTPUTS,
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(help="All settings and numbers of the run (.json).", rich_help_panel=_OUTPUTS),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Register a moving image to a fixed image."""
    from neuralreg.formats import FIELD_SUFFIXES

    outputs = [
        Output(flag, path, suffixes, write)
        for flag, path, suffixes, write in (
            ("--transform-out", transform_out, FIELD_SUFFIXES, write_transform),
            ("--inverse-out", inverse_out, FIELD_SUFFIXES, write_inverse),
            ("--start-out", start_out, (".tfm", ".txt"), write_start),
            ("--warped-out", warped_out, NIFTI, write_warped),
            ("--field-out", field_out, (".pt",), write_field),
            ("--figure-out", figure_out, (".png",), write_figure),
            ("--report", report, (".html",), partial(write_report, command=command_line(context))),
            ("--summary", summary, (".json",), write_summary),
        )
        if path is not None
    ]
    if start_out is not None and prior is not None:
        raise InputError("--start-out: with --prior there is no affine start to write")
    settings = how.arguments()
    check_outputs(outputs, [fixed, moving, fixed_mask, moving_mask, initial_transform, how.weights, prior])

    registration: Registration | Part
    together = {"RANK", "WORLD_SIZE"} <= os.environ.keys()  # torchrun has started this process among others
    quiet = quiet or (together and os.environ["RANK"] != "0")
    settings |= {
        "fixed_mask": fixed_mask,
        "moving_mask": moving_mask,
        "initial_transform": initial_transform,
        "prior": prior,
    }
    with progress_bar(quiet) as progress:
        if together:
            from neuralreg.cli.together import register_together

            paths = {output.flag: output.path for output in outputs}
            registration = register_together(fixed, moving, paths, settings | {"margin": margin}, progress)
        elif margin is not None:
            raise InputError("--margin belongs to several processes for one pair: start with torchrun")
        else:
            import neuralreg

            wanted = inverse_out is not None or report is not None  # the page shows how consistent it is
            alone = neuralreg.register(fixed, moving, inverse=wanted, progress=progress, **settings)
            write_together({output.path: partial(output.write, alone) for output in outputs})
            registration = alone
    if not quiet:
        print_table("registration", summary_rows(registration) + [(o.flag[2:], str(o.path)) for o in outputs])


def check_outputs(outputs: list[Output], inputs: list[Path | None]) -> None:
    """Everything about the output paths that can be known before the registration starts; InputError."""
    if not outputs:
        raise InputError(
            "nothing to write: give at least one of --transform-out, --inverse-out, --start-out, --warped-out, "
            "--field-out, --figure-out, --report, --summary"
        )
    from neuralreg.formats import for_writing
    from neuralreg.images import check_writable

    read = {os.path.realpath(path) for path in inputs if path is not None}
    seen: dict[str, str] = {}
    for output in outputs:
        check_writable(output.path, suffixes=output.suffixes, role=output.flag)
        if output.flag in ("--transform-out", "--inverse-out"):
            for_writing(output.path, role=output.flag)
        real = os.path.realpath(output.path)
        if real in read:
            raise InputError(f"{output.flag}: {output.path} is also an input and would be overwritten")
        if real in seen:
            raise InputError(f"{output.flag}: {output.path} is also the file of {seen[real]}")
        seen[real] = output.flag
    if any(output.flag == "--figure-out" for output in outputs):
        from neuralreg.figure import require_matplotlib

        require_matplotlib()
    if any(output.flag == "--report" for output in outputs):
        from neuralreg.report import require_report

        require_report()
