"""Learn2Reg's displacement: [X, Y, Z, 3] float32 in voxels, channel k along array axis k, over the fixed grid.

Fixed voxel i belongs to moving voxel i + d(i): its evaluation samples ``map_coordinates(moving, identity + d)``. In
NIfTI the array is plain 4-D with the fixed image's header; in .npz it is ``arr_0``. Neither holds the images' grids
(the header of a submission is often the identity), so reading needs both images. The half resolution of older rounds
is refused by its shape.
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
    values = np.moveaxis(voxel_displacement(transform, moving).cpu().numpy(), 0, -1)
    if suffix_of(path) == ".npz":
        write_npz(path, arr_0=np.ascontiguousarray(values))
    else:
        save_nifti(path, values if transform.ndim == 3 else values[:, :, None], transform.fixed.affine)


def read(path: Path, name: str, reference: Geometry | None, moving: Geometry | None) -> Transform:
    values, reference, moving = read_voxels(path, name, "arr_0", reference, moving)
    ndim = reference.ndim
    if ndim == 2 and values.ndim == 4 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim != ndim + 1 or values.shape[-1] != ndim:
        raise InputError(
            f"{name} is no displacement of Learn2Reg: shape {by(values.shape)}, not [X, Y, Z, 3]"
        )
    return from_voxel_displacement(np.moveaxis(values, -1, 0), reference, moving, name)
