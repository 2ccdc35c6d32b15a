"""What formats share: grids that ITK can hold, fields in moving voxels, and grids that a file does not hold itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neuralreg.errors import InputError
from neuralreg.formats.npz import read_array
from neuralreg.images import Geometry
from neuralreg.reading import by, open_nibabel, voxels_of
from neuralreg.slabs import affine_at, lattice, slabs
from neuralreg.transforms import Transform
from neuralreg.writing import suffix_of

ITK_SHEAR_TOLERANCE = 1e-4
IN_VOXELS = "counts in voxels"


def straight(transform: Transform) -> Transform:
    """The transform on a grid that ITK knows: a sheared one is replaced by the nearest one that covers it."""
    grid = transform.fixed
    return transform.on_grid(_straight_cover(grid)) if is_sheared(grid) else transform


def is_sheared(grid: Geometry) -> bool:
    """Whether a grid's axes are so far from orthogonal that ITK does not know such a grid."""
    shear = np.abs(grid.direction.T @ grid.direction - np.eye(grid.ndim)).max()
    return bool(shear > ITK_SHEAR_TOLERANCE)


def _straight_cover(grid: Geometry) -> Geometry:
    """The smallest grid of the same spacing, with the nearest orthogonal axes, that covers a sheared one."""
    left, _, right = np.linalg.svd(grid.direction)
    axes = left @ right * np.array(grid.spacing)
    corners = np.linalg.solve(axes, grid.corners().T)
    low, high = corners.min(1), corners.max(1)
    affine = np.eye(grid.ndim + 1)
    affine[:-1, :-1] = axes
    affine[:-1, -1] = axes @ low
    return Geometry(tuple(int(n) for n in np.ceil(high - low - 1e-6) + 1), affine)


def needed(grid: Geometry | None, what: str, name: str, counts: str) -> Geometry:
    """``grid``, the ``what`` image's ("reference", "moving"); InputError where it is missing."""
    if grid is None:
        raise InputError(
            f"{name} {counts}: give the {what} image, too (--{what}, or {what}= in Python; the two "
            f"images of a pair may be on one grid)"
        )
    return grid


def read_voxels(
    path: Path, name: str, key: str, reference: Geometry | None, moving: Geometry | None
) -> tuple[np.ndarray, Geometry, Geometry]:
    """A NIfTI file's array, or the array ``key`` of an .npz, and both grids, which such a file does not hold."""
    grids = needed(reference, "reference", name, IN_VOXELS), needed(moving, "moving", name, IN_VOXELS)
    if suffix_of(path) == ".npz":
        return read_array(path, name, key), *grids
    return voxels_of(open_nibabel(path, name), name), *grids


def voxel_displacement(transform: Transform, moving: Geometry) -> Tensor:
    """(ndim, *sp) float32: the moving voxel that a fixed voxel belongs to, minus the fixed voxel's indices."""
    grid = transform.fixed
    out = torch.empty_like(transform.displacement)
    identity = np.eye(grid.ndim, grid.ndim + 1)
    for part in slabs(grid.shape):
        out[:, part] = transform.moving_voxels(grid, moving, part)
        out[:, part] -= lattice(identity, grid.shape, part, out.device)
    return out


def from_voxel_displacement(values: np.ndarray, fixed: Geometry, moving: Geometry, name: str) -> Transform:
    """The transform of what `voxel_displacement` gives."""
    if values.shape != (fixed.ndim, *fixed.shape):
        raise InputError(
            f"{name} holds {by(values.shape[1:])} vectors of {values.shape[0]}, the reference image has "
            f"{by(fixed.shape)} voxels; give the image that was the fixed one"
        )
    if not np.isfinite(values.sum(dtype=np.float64)):
        raise InputError(f"{name} holds NaN or infinite displacements; it cannot be applied")
    field = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    if not fixed.same_grid(moving, 1e-4):
        # the grids may be turned against each other; u is small where it is the displacement in the world
        to_fixed = (np.linalg.inv(fixed.affine) @ moving.affine)[:-1]
        identity = np.eye(fixed.ndim, fixed.ndim + 1)
        for part in slabs(fixed.shape):
            index = lattice(identity, fixed.shape, part, dtype=torch.float64)
            field[:, part] = (affine_at(to_fixed, index + field[:, part]) - index).float()
    return Transform(field, fixed, moving)
