"""Transforms as commands take them: several files, some inverted, as one transform."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuralreg.errors import InputError

if TYPE_CHECKING:
    from neuralreg.images import Geometry
    from neuralreg.maps import SpatialMap

FromFormat = Annotated[
    str | None,
    typer.Option("--from", metavar="NAME", help="Format of the transform, where its content does not tell."),
]


def load_chain(
    paths: Sequence[Path],
    inverted: Collection[Path] = (),
    format: str | None = None,
    reference: Geometry | None = None,
    moving: Geometry | None = None,
    **options: Any,
) -> SpatialMap:
    """The transform that takes points through ``paths`` in their order, each of ``inverted`` the other way.

    ``format`` names the format of a single file, whose grids are then those of ``reference`` and ``moving``.

    Raises:
        InputError: an inverted file that is none of the paths, a format for several files, or a file that is none.
    """
    from neuralreg.formats import read
    from neuralreg.maps import compose

    known = {os.path.realpath(path) for path in paths}
    back = {os.path.realpath(path) for path in inverted}
    for path in inverted:
        if os.path.realpath(path) not in known:
            raise InputError(
                f"--invert: {path} is not one of the transforms; name a file that --transform names, too"
            )
    if len(paths) > 1 and format is not None:
        raise InputError(
            "--from names the format of one transform, and there are several; bring the file that needs it into "
            "another format first with neuralreg convert"
        )
    maps = []
    for path in paths:
        undone = os.path.realpath(path) in back
        grids = (moving, reference) if undone else (reference, moving)
        found = read(path, format, *grids, **options)
        maps.append(found.inverted() if undone else found)
    return compose(*maps)


def check_not_input(flag: str, out: Path, inputs: Collection[Path | None]) -> None:
    """InputError where an output is also an input."""
    if any(path is not None and os.path.realpath(path) == os.path.realpath(out) for path in inputs):
        raise InputError(f"{flag}: {out} is also an input and would be overwritten")
