"""Going through the voxels of a grid in slabs, so that work on coordinates needs no second volume of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# what works on coordinates goes through the volume in slabs of about this many voxels: beside the
# displacement itself (12 bytes a voxel) nothing of that size is then needed but results
SLAB_VOXELS = 1 << 19


def slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the first axis that hold about SLAB_VOXELS voxels each."""
    planes = max(1, SLAB_VOXELS // max(1, int(np.prod(shape[1:]))))
    return (slice(a, min(a + planes, shape[0])) for a in range(0, shape[0], planes))


def lattice(
    affine: np.ndarray | Tensor,
    shape: tuple[int, ...],
    part: slice,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(rows, *slab): affine (rows, ndim+1) float64 at the voxel indices of a slab along axis 0."""
    affine = torch.as_tensor(affine)
    spans = [(part.start, part.stop), *((0, n) for n in shape[1:])]
    ones = [1] * len(shape)
    terms = []
    for axis, (a, b) in enumerate(spans):
        line = affine[:, axis, None] * torch.arange(a, b, dtype=torch.float64)
        terms.append(line.view(-1, *ones[:axis], b - a, *ones[axis + 1 :]))
    head = affine[:, -1].view(-1, *ones) + sum(terms[:-1])
    # the one sum that is as large as the slab runs in the result's type; float32 is good to 1e-5 voxels
    return head.to(device, dtype) + terms[-1].to(device, dtype)


def mix(matrix: np.ndarray | Tensor, field: Tensor) -> Tensor:
    """matrix (rows, n) applied to the channels of a field (n, *any), in the field's type."""
    matrix = torch.as_tensor(matrix)
    return (matrix.to(field) @ field.flatten(1)).view(matrix.shape[0], *field.shape[1:])


def affine_at(affine: np.ndarray, points: Tensor) -> Tensor:
    """affine (rows, n+1) at points (n, *any), in their type."""
    shift = torch.from_numpy(affine[:, -1].copy()).to(points)
    return mix(affine[:, :-1].copy(), points) + shift.view(-1, *[1] * (points.ndim - 1))


def squared_norm(vectors: Tensor) -> Tensor:
    """Over the channels, (n, *any) -> (*any); torch's norm over a short leading axis is ten times slower."""
    return vectors.square().sum(0)
