"""`neuralreg jacobian`: the determinant of a transform's Jacobian, or its logarithm, as an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    transform: Annotated[
        Path, typer.Option(help="Transform, fixed to moving, as `neuralreg register` writes it.")
    ],
    out: Annotated[Path, typer.Option(help="The map on the transform's grid (.nii, .nii.gz).")],
    log: Annotated[
        bool,
        typer.Option("--log", help="The natural logarithm: below 0 is shrinkage; NaN where the map folds."),
    ] = False,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Mask on the transform's grid: outside stands no change (1, or 0 of --log), and nothing counts."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of the table.")] = False,
) -> None:
    """Volume change at each fixed voxel: the tissue's volume in the moving image over that in the fixed one."""
    import os

    from neuralreg.cli.terminal import print_table
    from neuralreg.errors import InputError
    from neuralreg.images import check_writable, read_mask, write_image
    from neuralreg.jacobian import jacobian_map, statistics
    from neuralreg.outputs import json_text
    from neuralreg.transforms import load_transform

    check_writable(out, role="--out")
    for path in (transform, mask):
        if path is not None and os.path.realpath(path) == os.path.realpath(out):
            raise InputError(f"--out: {out} is also an input and would be overwritten")
    loaded = load_transform(transform)
    if loaded.grid is None:
        raise InputError(f"transform {transform} is an affine and has no grid; its determinant is one number")
    loaded = loaded.dense()
    inside = None
    if mask is not None:
        inside = read_mask(mask, role="mask", like=loaded.fixed, like_name="the transform").data
    values = jacobian_map(loaded)
    found = statistics(values if inside is None else values[inside])
    write_image(out, jacobian_map(loaded, log, inside), loaded.fixed.affine)
    if json:
        print(json_text(found), end="")
        return
    rows = [
        ("smallest, median, largest", f"{found['min']:.4f}, {found['median']:.4f}, {found['max']:.4f}"),
        ("log: mean, sd", f"{found['mean_log']:.4f}, {found['sd_log']:.4f}"),
        ("folds", f"{found['folds']} of {found['voxels']} voxels"),
        ("written", str(out)),
    ]
    print_table("log det J" if log else "det J", rows)
