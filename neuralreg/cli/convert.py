"""`neuralreg convert`: a transform file, or several as one, in the format of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from neuralreg.cli.chain import FromFormat


def command(
    transform: Annotated[
        list[Path],
        typer.Option(
            "--transform", "-t", help="Transform file; repeat: fixed points go through the first one first."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write; its suffix tells the format, or --to does.")],
    reference: Annotated[
        Path | None,
        typer.Option(help="The image whose grid the result lies on; by default the transform's own grid."),
    ] = None,
    moving: Annotated[
        Path | None, typer.Option(help="The moving image, for formats that count in its voxels.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Format of the result; an unknown one lists them (docs/transforms.md)."
        ),
    ] = None,
    from_: FromFormat = None,
    invert: Annotated[bool, typer.Option("--invert", help="Write the inverse of the whole.")] = False,
    align_corners: Annotated[
        bool | None,
        typer.Option(
            "--align-corners/--no-align-corners",
            help="Of a torch sampling grid; --no-align-corners by default, as in torch.",
        ),
    ] = None,
) -> None:
    """Write a transform in another tool's format. With --invert, --reference and --moving are of the result."""
    from neuralreg.cli.chain import check_not_input, load_chain
    from neuralreg.formats import by_name, for_writing, write
    from neuralreg.images import read_geometry

    form = for_writing(out, to, role="--out")
    check_not_input("--out", out, [*transform, reference, moving])
    grids = tuple(
        None if path is None else read_geometry(path, role=role)
        for path, role in ((reference, "reference image"), (moving, "moving image"))
    )
    corners: dict[str, Any] = {"align_corners": align_corners}
    of_the_file = from_ is not None and "align_corners" in by_name(from_).options
    # what is inverted leads from the result's moving image to its reference
    whole = load_chain(
        transform, (), from_, *(grids[::-1] if invert else grids), **(corners if of_the_file else {})
    )
    whole = whole.inverted() if invert else whole
    write(whole, out, form.name, *grids, **({} if of_the_file and not form.options else corners))
    print(f"wrote {out} ({form.name})")
