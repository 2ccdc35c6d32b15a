"""An image of which a rank reads a box, and the range of its intensities over all ranks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.boxes import Box, origin_of, shape_of, slices, whole
from neuralreg.errors import InputError
from neuralreg.images import Geometry, Image, check_same_grid, read_geometry, scale_intensity
from neuralreg.intensity import check_quantiles
from neuralreg.reading import open_nibabel, part_of
from neuralreg.sharded.order import order_statistics
from neuralreg.sharded.ranks import Together

READ_VOXELS = 1 << 21  # of whole planes of the file, which are read at once


def cut(geometry: Geometry, box: Box) -> Geometry:
    """The grid of a box of voxels."""
    affine = geometry.affine.copy()
    affine[:-1, -1] = geometry.voxel_to_world(np.array([origin_of(box)]))[0]
    return Geometry(shape_of(box), affine)


class Volume:
    """A scalar image in a file. Only the boxes that are asked for are kept, a few planes beside them.

    ``range`` are the intensities that become 0 and 1, once :func:`find_range` has found them.
    """

    def __init__(self, path: str | os.PathLike[str], role: str, nan_to: float | None = None) -> None:
        self.path, self.role, self.nan_to = path, role, nan_to
        self.name = f"{role} {os.fspath(path)}"
        self.geometry = read_geometry(path, role=role)
        # Kept open: a compressed file is then read on from where the last part ended.
        self._file = open_nibabel(Path(path), self.name, keep_file_open=True)
        self.range = (0.0, 1.0)

    @property
    def image(self) -> Image:
        """The geometry with voxels of 0 that take no memory."""
        return Image(torch.zeros(()).expand(self.geometry.shape), self.geometry.affine)

    def read(self, box: Box) -> np.ndarray:
        """The voxels of a box, float32."""
        grid = self.geometry.shape
        out = np.empty(shape_of(box), dtype=np.float32)
        inner, (first, last) = (*slices(box[:-1]), slice(None)), box[-1]
        planes = max(1, READ_VOXELS // int(np.prod(grid[:-1])))
        for start in range(first, last, planes):
            stop = min(start + planes, last)
            part = part_of(self._file, self.name, (*slices(whole(grid[:-1])), slice(start, stop)))
            out[..., start - first : stop - first] = part[inner]
        if self.nan_to is not None:
            out[~np.isfinite(out)] = self.nan_to
        return out

    def scaled(self, box: Box, device: torch.device) -> Tensor:
        """The voxels of a box (1, 1, *box), scaled to [0, 1]."""
        values = scale_intensity(torch.from_numpy(self.read(box)), window=self.range)[0]
        return values[None, None].to(device)

    def inside(self, box: Box, device: torch.device) -> Tensor:
        """A mask in a box (1, 1, *box): 1 where the voxel is not 0, else 0."""
        return torch.from_numpy((self.read(box) != 0).astype(np.float32))[None, None].to(device)


def read_mask_volume(path: Any, role: str, like: Geometry) -> Volume | None:
    """The mask of an image on its grid; None without a path."""
    if path is None:
        return None
    mask = Volume(path, role, nan_to=1.0)
    check_same_grid(mask.geometry, like, role=mask.name, like="its image")
    return mask


def find_range(
    ranks: Together,
    volume: Volume,
    mask: Volume | None,
    window: tuple[float, float] | None,
    quantiles: tuple[float, float],
) -> dict[str, Any]:
    """Sets the volume's range as :func:`neuralreg.images.scale_intensity` finds it, and says how.

    Every rank reads one part of the file, so that each voxel is looked at once.

    Raises:
        NeuralregError: voxels that are not finite, a constant image, an empty mask; the same line on all ranks.
    """
    box = ranks.own_box(volume.geometry.shape, volume.geometry.ndim - 1)
    with ranks.agreed():
        values = volume.read(box).reshape(-1)
        chosen = None if mask is None else mask.read(box).reshape(-1) != 0
        check_quantiles(quantiles)
    bad, count, inside = map(
        int,
        ranks.sums(
            [(~np.isfinite(values)).sum(), values.size, values.size if chosen is None else chosen.sum()]
        ),
    )
    if bad:
        raise InputError(
            f"{volume.name} holds {bad} voxels that are NaN or infinite; repair it, or "
            f"replace them by --nan-to VALUE (nan_to=VALUE in Python)"
        )
    if not inside:
        raise InputError(f"{mask.name if mask else volume.name} is empty: it leaves no voxel to register")
    least, most = order_statistics(ranks, values, [0, count - 1])
    if least == most:
        raise InputError(f"{volume.role} is constant, every voxel is {least:g}; there is nothing to register")
    if window is not None:
        volume.range = (float(window[0]), float(window[1]))
        return {"method": "window", "low": volume.range[0], "high": volume.range[1]}
    if chosen is not None:
        values = values[chosen]
    places = [min(int(q * inside), inside - 1) for q in quantiles]
    low, high = order_statistics(ranks, values, places)
    method = "quantiles"
    if low >= high:
        low, high = order_statistics(ranks, values, [0, inside - 1])
        low, high, method = low, high if high > low else low + 1.0, "range"
    volume.range = (low, high)
    given = {"quantiles": [float(q) for q in quantiles], "masked": mask is not None}
    return {"method": method, **given, "low": low, "high": high}
