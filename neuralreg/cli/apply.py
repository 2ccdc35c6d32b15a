"""`neuralreg apply`: resample a moving image with a transform that was computed before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    transform: Annotated[
        Path,
        typer.Option(
            help="ITK displacement field (.nii, .nii.gz), affine (.tfm, .txt, .mat, .h5) or saved field (.pt), "
            "fixed to moving."
        ),
    ],
    moving: Annotated[Path, typer.Option(help="The image or label map that is resampled.")],
    reference: Annotated[
        Path, typer.Option(help="The image whose grid the result gets, as a rule the fixed one.")
    ],
    out: Annotated[Path, typer.Option(help="The result (.nii, .nii.gz).")],
    interpolation: Annotated[
        str,
        typer.Option(
            metavar="linear|nearest|label",
            help="linear for images; label for label maps: each voxel takes the label with the largest "
            "linearly interpolated share; nearest copies values. The last two keep the data type.",
        ),
    ] = "linear",
    fill: Annotated[float, typer.Option(help="The value outside the moving image, as -1024 in CT.")] = 0.0,
    nan_to: Annotated[
        float | None,
        typer.Option(help="Replace NaN and infinity in the moving image by this value instead of refusing."),
    ] = None,
) -> None:
    """Resample a moving image, or its labels, on the grid of a reference image."""
    import os

    import numpy as np

    from neuralreg.errors import InputError
    from neuralreg.images import check_writable, read_geometry, read_stored, write_image
    from neuralreg.transforms import INTERPOLATIONS, load_transform

    if interpolation not in INTERPOLATIONS:
        raise InputError(f"--interpolation: there is no '{interpolation}'; use {', '.join(INTERPOLATIONS)}")
    check_writable(out, role="--out")
    for path in (transform, moving, reference):
        if os.path.realpath(path) == os.path.realpath(out):
            raise InputError(f"--out: {out} is also an input and would be overwritten")
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
    grid = read_geometry(reference, role="reference image")
    warped = load_transform(transform).warp(image, grid, interpolation, fill)
    write_image(out, warped.data, warped.affine, dtype=dtype)
    print(f"wrote {out}")
