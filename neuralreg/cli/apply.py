"""`neuralreg apply`: take an image, or points, through transforms that were computed before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuralreg.cli.chain import FromFormat

if TYPE_CHECKING:
    import numpy as np

    from neuralreg.images import Image

_IMAGE, _POINTS = "Image", "Points"


def command(
    transform: Annotated[
        list[Path],
        typer.Option(
            "--transform",
            "-t",
            help="Transform, fixed to moving, of any format that neuralreg convert reads; repeat, in ANTs' order: "
            "fixed points go through the first one first, an image through the last one first.",
        ),
    ],
    invert: Annotated[
        list[Path] | None,
        typer.Option(help="One of the transforms that is to be taken the other way; repeat."),
    ] = None,
    from_: FromFormat = None,
    moving: Annotated[
        Path | None, typer.Option(help="The image or label map that is resampled.", rich_help_panel=_IMAGE)
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="The image whose grid the result gets, as a rule the fixed one.", rich_help_panel=_IMAGE
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The result (.nii, .nii.gz).", rich_help_panel=_IMAGE)
    ] = None,
    interpolation: Annotated[
        str,
        typer.Option(
            metavar="linear|nearest|label",
            help="linear for images; label for label maps: each voxel takes the label with the largest "
            "linearly interpolated share; nearest copies values. The last two keep the data type.",
            rich_help_panel=_IMAGE,
        ),
    ] = "linear",
    fill: Annotated[
        float,
        typer.Option(help="The value outside the moving image, as -1024 in CT.", rich_help_panel=_IMAGE),
    ] = 0.0,
    nan_to: Annotated[
        float | None,
        typer.Option(
            help="Replace NaN and infinity in the moving image by this value instead of refusing.",
            rich_help_panel=_IMAGE,
        ),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(
            help="Points: csv with columns x, y, z in mm, beside any others.", rich_help_panel=_POINTS
        ),
    ] = None,
    points_out: Annotated[
        Path | None,
        typer.Option(
            help="The same table with the points' places in the other image (.csv).", rich_help_panel=_POINTS
        ),
    ] = None,
    points_of: Annotated[
        str,
        typer.Option(
            metavar="fixed|moving",
            help="The image that the points lie in: fixed points go to the moving image, moving points by the "
            "inverse to the fixed one.",
            rich_help_panel=_POINTS,
        ),
    ] = "fixed",
    points_space: Annotated[
        str | None,
        typer.Option(
            metavar="RAS|LPS",
            help="Space of the points, if no _ras or _lps ends the column names.",
            rich_help_panel=_POINTS,
        ),
    ] = None,
) -> None:
    """Resample a moving image, or its labels, on the grid of a reference image; or move points."""
    from neuralreg.cli.chain import check_not_input, load_chain
    from neuralreg.errors import InputError
    from neuralreg.images import check_writable, read_geometry, write_image
    from neuralreg.maps import IMAGES, INTERPOLATIONS
    from neuralreg.points import read_points

    _check_arguments(moving, reference, out, points, points_out, from_)
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"--interpolation: there is no '{interpolation}'; use {', '.join(INTERPOLATIONS)}")
    if points_of not in IMAGES:
        raise InputError(f"--points-of: there is no '{points_of}'; use {' or '.join(IMAGES)}")
    inputs = [*transform, moving, reference, points]
    for flag, path, suffixes in (
        ("--out", out, (".nii", ".nii.gz")),
        ("--points-out", points_out, (".csv",)),
    ):
        if path is not None:
            check_writable(path, suffixes=suffixes, role=flag)
            check_not_input(flag, path, inputs)
    image, dtype = (None, None) if moving is None else _read_moving(moving, interpolation, nan_to)
    table = None if points is None else read_points(points, points_space)
    grid = None if reference is None else read_geometry(reference, role="reference image")
    whole = load_chain(transform, invert or (), from_, grid, None if image is None else image.geometry)
    if table is not None and table.points.shape[1] != whole.ndim:
        raise InputError(f"points {points} are {table.points.shape[1]}-D, the transform is {whole.ndim}-D")
    if image is not None and out is not None:
        warped = whole.warp(image, grid, interpolation, fill)
        write_image(out, warped.data, warped.affine, dtype=dtype)
        print(f"wrote {out}")
    if table is not None and points_out is not None:
        table.write(points_out, whole.apply_to_points(table.points, table.space, points_of))
        print(f"wrote {points_out}: places in the {IMAGES[points_of == 'fixed']} image, {table.space} mm")


def _check_arguments(
    moving: Path | None,
    reference: Path | None,
    out: Path | None,
    points: Path | None,
    points_out: Path | None,
    from_: str | None,
) -> None:
    """InputError for half of an image or half of the points, or neither."""
    from neuralreg.errors import InputError

    image = {"--moving": moving, "--reference": reference, "--out": out}
    table = {"--points": points, "--points-out": points_out}
    if out is None and points_out is None:
        raise InputError("nothing to do: give --moving, --reference and --out, or --points and --points-out")
    for group, wanted in ((image, out is not None or points_out is None), (table, points or points_out)):
        missing = [flag for flag, path in group.items() if path is None]
        if wanted and missing:
            raise InputError(f"{', '.join(missing)}: missing; give {', '.join(group)} together")
    if out is None and from_ is None and (moving is not None or reference is not None):
        raise InputError("--moving and --reference are for an image: give --out, too, or leave them out")


def _read_moving(moving: Path, interpolation: str, nan_to: float | None) -> tuple[Image, np.dtype]:
    """The moving image and the type of the result's voxels."""
    import numpy as np

    from neuralreg.errors import InputError
    from neuralreg.images import read_stored

    image, dtype = read_stored(moving, role="moving image", nan_to=nan_to)
    if interpolation == "linear":
        dtype = np.dtype(np.float32)
    elif (
        interpolation == "label"
        and image.data.is_floating_point()
        and bool((image.data != image.data.round()).any())
    ):
        raise InputError(
            f"moving image {moving} is no label map, its values are not integers; use --interpolation "
            f"linear or nearest"
        )
    return image, dtype
