"""Writes an image of which every rank has a part: rank 0 has the file, the others send their planes in file order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from neuralreg.boxes import Box, common, shape_of, slices, whole, with_rows, within
from neuralreg.images import Geometry
from neuralreg.sharded.ranks import Together
from neuralreg.writing import nifti_image

CHUNK_VOXELS = 1 << 20  # of one component, which rank 0 holds at once


def write_parts(
    ranks: Together,
    path: Path | None,
    geometry: Geometry,
    box: Box,
    part: Callable[[Box, int], np.ndarray],
    *,
    vectors: bool = False,
    intent: int | None = None,
) -> None:
    """Writes a float32 NIfTI file of the whole grid; all ranks call it.

    ``path``: on rank 0. ``box``: this rank's part of the grid; those of all ranks make it up. ``part(box, component)``
    gives the values (*box) of a part of it. ``vectors``: 5-D, one component an axis, as ITK's displacement fields.
    """
    shape, ndim = geometry.shape, geometry.ndim
    full = (*shape, *[1] * (4 - ndim), ndim) if vectors else shape
    boxes: list[Box] = ranks.everyones(box)
    planes = max(1, CHUNK_VOXELS // int(np.prod(shape[:-1])))
    with _Sink(path, full, geometry, intent) as write:
        for component in range(ndim if vectors else 1):
            for start in range(0, shape[-1], planes):
                chunk = with_rows(whole(shape), ndim - 1, (start, min(start + planes, shape[-1])))
                values = np.empty(shape_of(chunk), dtype=np.float32)
                for sender, theirs in enumerate(boxes):
                    piece = common(chunk, theirs)
                    if not np.prod(shape_of(piece)):
                        continue
                    mine = torch.from_numpy(part(piece, component)) if sender == ranks.rank else None
                    got = ranks.sent(mine, sender, shape_of(piece))
                    if got is not None:
                        values[slices(within(piece, chunk))] = got.numpy()
                write(values)


class _Sink:
    """The file on rank 0, nothing elsewhere; NIfTI's first axis is the fastest."""

    def __init__(
        self, path: Path | None, shape: tuple[int, ...], geometry: Geometry, intent: int | None
    ) -> None:
        self.path = path
        zeros = np.broadcast_to(np.float32(0), shape)  # a header alone is wanted
        self.header = nifti_image(zeros, geometry.affine, intent).header

    def __enter__(self) -> Callable[[np.ndarray], None]:
        from nibabel.openers import ImageOpener

        if self.path is None:
            return lambda values: None
        self.file = ImageOpener(str(self.path), "wb")
        self.header.write_to(self.file)
        return self._write

    def _write(self, values: np.ndarray) -> None:
        self.file.write(values.tobytes(order="F"))

    def __exit__(self, *error: object) -> None:
        if self.path is not None:
            self.file.close()
