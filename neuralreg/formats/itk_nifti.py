"""ITK displacement field in NIfTI: 5-D [X, Y, Z, 1, 3] (2-D: [X, Y, 1, 1, 2]), intent 1007, LPS millimetres.

The vector at a fixed voxel is moving point minus fixed point; what ITK, ANTs and SimpleITK read. Intent 1006 means RAS
vectors to ITK, and is read so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralreg.errors import InputError
from neuralreg.formats.grids import straight
from neuralreg.images import Geometry
from neuralreg.reading import by, check_affine, lps_flip, open_nibabel, voxels_of
from neuralreg.slabs import mix, slabs
from neuralreg.transforms import Transform
from neuralreg.writing import save_nifti

VECTOR_INTENT = 1007  # NIFTI_INTENT_VECTOR: ITK reads its vectors unchanged, as LPS
DISPLACEMENT_INTENT = 1006


def write(path: Path, transform: Transform, moving: Geometry | None = None) -> None:
    """On the transform's grid, made straight where it is sheared, the affine in the displacement.

    Vectors are rounded to a 4096th of a voxel or less: the file is a third smaller.
    """
    transform = straight(transform)
    values = np.moveaxis(stored(transform), 0, -1)
    values = values.reshape(*transform.fixed.shape, *[1] * (4 - transform.ndim), transform.ndim)
    save_nifti(path, values, transform.fixed.affine, intent=VECTOR_INTENT)


def stored(transform: Transform) -> np.ndarray:
    """The vectors (ndim, *grid) as files hold them, rounded to a 4096th of a voxel or less."""
    grain = 2.0 ** (np.floor(np.log2(min(transform.fixed.spacing))) - 12)
    return transform.to_physical().div_(grain).round_().mul_(grain).cpu().numpy()


def recognise(path: Path, name: str) -> str | None:
    image = open_nibabel(path, name)
    shape = tuple(image.shape)
    ndim = shape[-1] if len(shape) == 5 else 0
    intent = _intent(image)
    if ndim in (2, 3) and shape[3] == 1 and (ndim == 3 or shape[2] == 1) and intent in (1006, 1007):
        return None
    return (
        f"is not a displacement field as `neuralreg register --transform-out` and ITK write it, 5-D with vector "
        f"intent (1007): shape {by(shape)}, intent {intent}"
    )


def read(
    path: Path, name: str, reference: Geometry | None = None, moving: Geometry | None = None
) -> Transform:
    refused = recognise(path, name)
    if refused is not None:
        raise InputError(f"{name} {refused}")
    image = open_nibabel(path, name)
    shape = tuple(image.shape)
    ndim = shape[-1]
    values = voxels_of(image, name).reshape(*shape[:ndim], ndim)
    affine = np.asarray(image.affine, dtype=np.float64)
    if ndim == 2:
        affine = affine[np.ix_([0, 1, 3], [0, 1, 3])]
    check_affine(affine, name)
    if not np.isfinite(values.sum(dtype=np.float64)):
        raise InputError(f"{name} holds NaN or infinite displacements; it cannot be applied")
    to_voxels = np.linalg.inv(affine)[:-1, :-1]
    if _intent(image) == VECTOR_INTENT:
        to_voxels = to_voxels @ lps_flip(ndim)[:-1, :-1]
    field = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0), dtype=np.float32))
    for part in slabs(tuple(field.shape[1:])):
        field[:, part] = mix(to_voxels, field[:, part])
    return Transform(field, Geometry(tuple(field.shape[1:]), affine), moving)


def _intent(image: Any) -> int:
    return int(image.header["intent_code"]) if hasattr(image.header, "get_intent") else 0
