"""VoxelMorph's warp as its torch script writes it: (3, X, Y, Z) float32 in voxels, channel k along array axis k.

Fixed voxel i belongs to moving voxel i + d(i), as in Learn2Reg's files; only the order of the axes differs. In .npz the
array is ``vol``; in NIfTI the header is the fixed image's. What the TensorFlow script writes, (X, Y, Z, 3), is read
too. Reading needs both images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neuralreg.errors import InputError
from neuralreg.formats.grids import (
    IN_VOXELS,
    from_voxel_displacement,
    needed,
    read_voxels,
    voxel_displacement,
)
from neuralreg.formats.npz import write_npz
from neuralreg.images import Geometry
from neuralreg.reading import by
from neuralreg.transforms import Transform
from neuralreg.writing import save_nifti, suffix_of


def write(path: Path, transform: Transform, moving: Geometry | None) -> None:
    moving = needed(moving, "moving", f"transform {path}", IN_VOXELS)
    values = voxel_displacement(transform, moving).cpu().numpy()
    if suffix_of(path) == ".npz":
        write_npz(path, vol=values)
    else:
        save_nifti(path, values, transform.fixed.affine)


def read(path: Path, name: str, reference: Geometry | None, moving: Geometry | None) -> Transform:
    values, reference, moving = read_voxels(path, name, "vol", reference, moving)
    first, last = (reference.ndim, *reference.shape), (*reference.shape, reference.ndim)
    if values.shape not in (first, last) or first == last:
        raise InputError(
            f"{name} is no VoxelMorph warp of the reference image: shape {by(values.shape)}, not {by(first)} "
            f"or {by(last)}"
        )
    channels_first = values if values.shape == first else np.moveaxis(values, -1, 0)
    return from_voxel_displacement(channels_first, reference, moving, name)
