"""`neuralreg register`: two images in, a transform and whatever else is asked for out."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuralreg.cli.terminal import print_table, progress_bar
from neuralreg.errors import InputError
from neuralreg.outputs import summary_rows, write_json, write_together

if TYPE_CHECKING:
    from neuralreg.registration import Registration
    from neuralreg.sharded.registration import Part

NIFTI = (".nii", ".nii.gz")

# Arguments of neuralreg.register that have a flag of their own and so cannot be given as --option.
OWN_FLAGS = {
    "fixed", "moving", "method", "preset", "weights", "refine", "fixed_mask", "moving_mask",
    "initial_transform", "center", "prior", "window", "quantiles", "nan_to", "iterations", "time_budget", "max_memory",
    "seed", "deterministic", "device", "threads",
}  # fmt: skip

TOGETHER = {"margin", "inverse_out"}  # those of neuralreg.sharded.registration.register beside them

_INPUTS, _RUN, _OUTPUTS = "Images", "Registration", "Outputs (at least one)"


@dataclass(frozen=True)
class Output:
    """One file to be written: its flag, its path, the suffixes that it may have, and what writes it."""

    flag: str
    path: Path
    suffixes: tuple[str, ...]
    write: Callable[[Registration, Path], None]


def command(
    fixed: Annotated[
        Path,
        typer.Option(help="The image whose grid the result has (.nii, .nii.gz).", rich_help_panel=_INPUTS),
    ],
    moving: Annotated[
        Path, typer.Option(help="The image that is deformed onto it.", rich_help_panel=_INPUTS)
    ],
    fixed_mask: Annotated[
        Path | None,
        typer.Option(help="Where in the fixed image to compare: voxels > 0.", rich_help_panel=_INPUTS),
    ] = None,
    moving_mask: Annotated[
        Path | None,
        typer.Option(help="Where in the moving image to compare: voxels > 0.", rich_help_panel=_INPUTS),
    ] = None,
    initial_transform: Annotated[
        Path | None,
        typer.Option(
            help="Affine start: ITK .tfm, .txt, .mat, .h5 or a 4x4 matrix as text (LPS mm, fixed to moving).",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    center: Annotated[
        bool,
        typer.Option(
            "--center", help="Start from aligned centres, without a transform.", rich_help_panel=_INPUTS
        ),
    ] = False,
    prior: Annotated[
        Path | None,
        typer.Option(
            help="A transform that comes behind the new map: its file, such as --transform-out of a coarse run.",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="LO,HI", help="Intensity window, such as -1000,400 for lung CT.", rich_help_panel=_INPUTS
        ),
    ] = None,
    quantiles: Annotated[
        str | None,
        typer.Option(
            metavar="LO,HI",
            help="Intensity window as quantiles, such as 0.001,0.999.",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    nan_to: Annotated[
        float | None,
        typer.Option(
            help="Replace NaN and infinity by this value instead of refusing.", rich_help_panel=_INPUTS
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Registration method: nir, ncf, nephi or ofg.", rich_help_panel=_RUN)
    ] = "nir",
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings of the method by name, fast by default; an unknown one lists them.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Trained network that predicts the map (.pt of neuralreg train).", rich_help_panel=_RUN
        ),
    ] = None,
    refine: Annotated[
        int | None,
        typer.Option(metavar="STEPS", help="Steps that refine a prediction.", rich_help_panel=_RUN),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(help="Iterations in all; the preset's own number by default.", rich_help_panel=_RUN),
    ] = None,
    time_budget: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Seconds that the fit may take, if its iterations do not end before.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(
            metavar="MB",
            help="Memory that the process may reach: fewer points an iteration.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Any other setting of the method; repeat.", rich_help_panel=_RUN
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.", rich_help_panel=_RUN)] = 0,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="The same result in every run on a GPU, too.", rich_help_panel=_RUN
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_RUN)] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; all cores by default.", rich_help_panel=_RUN)
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            metavar="MM",
            help="Under torchrun: how far points may move before more of the moving image is read; 10.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    transform_out: Annotated[
        Path | None,
        typer.Option(
            help="Transform, fixed to moving points: ITK displacement field (.nii.gz, LPS mm).",
            rich_help_panel=_OUTPUTS,
        ),
    ] = None,
    inverse_out: Annotated[
        Path | None,
        typer.Option(help="Its inverse, on the moving grid, in the same format.", rich_help_panel=_OUTPUTS),
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
    summary: Annotated[
        Path | None,
        typer.Option(help="All settings and numbers of the run (.json).", rich_help_panel=_OUTPUTS),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=_RUN)
    ] = False,
) -> None:
    """Register a moving image to a fixed image."""
    outputs = [
        Output(flag, path, suffixes, write)
        for flag, path, suffixes, write in (
            ("--transform-out", transform_out, NIFTI, _write_transform),
            ("--inverse-out", inverse_out, NIFTI, _write_inverse),
            ("--warped-out", warped_out, NIFTI, _write_warped),
            ("--field-out", field_out, (".pt",), _write_field),
            ("--figure-out", figure_out, (".png",), _write_figure),
            ("--summary", summary, (".json",), _write_summary),
        )
        if path is not None
    ]
    options = parse_options(option or [], OWN_FLAGS | TOGETHER)
    limits = parse_pair("--window", window), parse_pair("--quantiles", quantiles)
    check_outputs(outputs, [fixed, moving, fixed_mask, moving_mask, initial_transform, weights, prior])

    arguments: dict[str, Any] = {
        "method": method,
        "preset": preset,
        "weights": weights,
        "refine": refine,
        "fixed_mask": fixed_mask,
        "moving_mask": moving_mask,
        "initial_transform": initial_transform,
        "center": center,
        "prior": prior,
        "window": limits[0],
        "quantiles": limits[1],
        "nan_to": nan_to,
        "iterations": iterations,
        "time_budget": time_budget,
        "max_memory": max_memory,
        "seed": seed,
        "deterministic": deterministic,
        "device": device,
        "threads": threads,
    }
    registration: Registration | Part
    together = {"RANK", "WORLD_SIZE"} <= os.environ.keys()  # torchrun has started this process among others
    quiet = quiet or (together and os.environ["RANK"] != "0")
    with progress_bar(quiet) as progress:
        if together:
            from neuralreg.sharded.command import register_together

            paths = {output.flag: output.path for output in outputs}
            registration = register_together(
                fixed, moving, paths, {**arguments, "margin": margin}, options, progress
            )
        elif margin is not None:
            raise InputError("--margin belongs to several processes for one pair: start with torchrun")
        else:
            import neuralreg

            alone = neuralreg.register(fixed, moving, progress=progress, **arguments, **options)
            write_together({output.path: partial(output.write, alone) for output in outputs})
            registration = alone
    if not quiet:
        print_table("registration", summary_rows(registration) + [(o.flag[2:], str(o.path)) for o in outputs])


def parse_pair(flag: str, text: str | None) -> tuple[float, float] | None:
    """`lo,hi` as two numbers with lo < hi; InputError otherwise."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{flag}: expected two numbers as LO,HI, got '{text}'") from None
    if not low < high:
        raise InputError(f"{flag}: the first number must be below the second, got '{text}'")
    return low, high


def parse_options(pairs: list[str], own: Collection[str] = OWN_FLAGS) -> dict[str, Any]:
    """`name=value` pairs as arguments: numbers, true, false, none, comma lists as tuples, else text.

    ``own`` are names that have a flag of their own, and are refused.
    """
    words = {"true": True, "false": False, "none": None}
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise InputError(f"--option: expected NAME=VALUE, got '{pair}'")
        if name in options:
            raise InputError(f"--option: '{name}' is given twice")
        if name in own or name == "progress":
            hint = f"; use --{name.replace('_', '-')}" if name in own else ""
            raise InputError(f"--option: '{name}' is not an option of a method{hint}")
        if text.strip().lower() in words:
            options[name] = words[text.strip().lower()]
            continue
        try:
            options[name] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            options[name] = text
    return options


def check_outputs(outputs: list[Output], inputs: list[Path | None]) -> None:
    """Everything about the output paths that can be known before the registration starts; InputError."""
    if not outputs:
        raise InputError(
            "nothing to write: give at least one of --transform-out, --inverse-out, --warped-out, "
            "--field-out, --figure-out, --summary"
        )
    from neuralreg.images import check_writable

    read = {os.path.realpath(path) for path in inputs if path is not None}
    seen: dict[str, str] = {}
    for output in outputs:
        check_writable(output.path, suffixes=output.suffixes, role=output.flag)
        real = os.path.realpath(output.path)
        if real in read:
            raise InputError(f"{output.flag}: {output.path} is also an input and would be overwritten")
        if real in seen:
            raise InputError(f"{output.flag}: {output.path} is also the file of {seen[real]}")
        seen[real] = output.flag
    if any(output.flag == "--figure-out" for output in outputs):
        from neuralreg.figure import require_matplotlib

        require_matplotlib()


def _write_transform(registration: Registration, path: Path) -> None:
    registration.transform.save(path)


def _write_inverse(registration: Registration, path: Path) -> None:
    registration.inverse.save(path)


def _write_warped(registration: Registration, path: Path) -> None:
    from neuralreg.images import write_image

    write_image(path, registration.warped.data, registration.warped.affine)


def _write_field(registration: Registration, path: Path) -> None:
    registration.save_field(path)


def _write_figure(registration: Registration, path: Path) -> None:
    from neuralreg.figure import registration_figure

    registration_figure(registration, path)


def _write_summary(registration: Registration, path: Path) -> None:
    write_json(path, registration.summary)
