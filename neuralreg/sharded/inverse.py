"""The inverse of a transform of which every rank has a part: a rank asks the field where its own moving voxels lead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from neuralreg.affines import invert_affine, voxel_affine
from neuralreg.boxes import Box, ends_of, hull, image_of, longest_axis, readable, slices, whole, within
from neuralreg.images import Geometry
from neuralreg.inversion import inverse_errors
from neuralreg.methods.nir import dense_displacement
from neuralreg.sharded.order import order_statistics
from neuralreg.sharded.ranks import Together
from neuralreg.sharded.volume import cut
from neuralreg.transforms import Transform


@dataclass(frozen=True)
class InversePart:
    """The inverse on a part of the moving grid, ``box``."""

    box: Box
    transform: Transform


def invert(
    ranks: Together, field: Any, transform: Transform, grid: Geometry
) -> tuple[InversePart, dict[str, float]]:
    """This rank's part of the inverse, and `neuralreg.transforms.inverse_consistency` of the whole.

    ``transform`` is on this rank's part of the fixed ``grid``. The moving voxels that it reaches are inverted here
    too, so that its own points can be taken there and back.
    """
    moving = transform.moving
    assert moving is not None
    own = ranks.own_box(moving.shape, longest_axis(moving.shape))
    solved = hull(own, readable(*reach(transform, moving), moving.shape))
    # A moving point j comes from i with i + u(i) = A^-1 j: nowhere farther from A^-1 j than any displacement is long.
    everyones = np.stack(ranks.everyones(bounds(transform.displacement)))
    back = voxel_affine(moving, grid, invert_affine(transform.initial))
    low, high = image_of(back, *ends_of(solved))
    asked = readable(low - everyones[:, 1].max(0), high - everyones[:, 0].min(0), grid.shape)
    displacement = dense_displacement(field, grid.shape, box=asked).cpu()
    local = Transform(displacement, cut(grid, asked), moving, transform.initial)
    inverse = local.inverse(cut(moving, solved))
    errors, count = inverse_errors(transform, inverse)
    part = InversePart(own, transform_in(inverse, within(own, solved)))
    return part, consistency_of(ranks, errors, count)


def consistency_of(ranks: Together, errors: np.ndarray, asked: int) -> dict[str, float]:
    """The consistency of the errors of all ranks, which have ``asked`` voxels each."""
    total, count, voxels = ranks.sums([float(errors.sum(dtype=np.float64)), errors.size, asked])
    if not count:
        return {**dict.fromkeys(("mean_mm", "p95_mm", "max_mm"), math.nan), "inside_fraction": 0.0}
    place = 0.95 * (count - 1)
    below, above, most = order_statistics(
        ranks, errors, [math.floor(place), math.ceil(place), int(count) - 1]
    )
    return {
        "mean_mm": total / count,
        "p95_mm": below + (above - below) * (place - math.floor(place)),
        "max_mm": most,
        "inside_fraction": count / voxels,
    }


def transform_in(transform: Transform, part: Box) -> Transform:
    """The transform on a part of its own grid."""
    index = slice(None), *slices(part)
    return Transform(
        transform.displacement[index], cut(transform.fixed, part), transform.moving, transform.initial
    )


def reach(transform: Transform, moving: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (ndim,) of the moving voxels that a transform leads to from its grid."""
    least, most = bounds(transform.displacement)
    low, high = ends_of(whole(transform.fixed.shape))
    return image_of(transform.voxel_affine(moving), low + least, high + most)


def bounds(displacement: Tensor) -> np.ndarray:
    """The smallest and the largest value (2, ndim) of every channel."""
    flat = displacement.flatten(1)
    return np.stack([flat.amin(1).double().numpy(), flat.amax(1).double().numpy()])
