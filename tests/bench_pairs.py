"""A small pair as the benchmarks have pairs, and the transform that is its answer."""

from __future__ import annotations

import numpy as np
import torch

from neuralreg.bench.pairs import RealPair
from neuralreg.images import Image
from neuralreg.transforms import Transform
from tests.small import SHAPE, blobs

AFFINE = np.array([[0.0, 2, 0, 5], [-2, 0, 0, 7], [0, 0, 3, -4], [0, 0, 0, 1]])
SHIFT = 2  # voxels along the first axis


def small_pair(name: str = "small/a-b", initial: bool = False) -> RealPair:
    """Blobs and the same ones two voxels on, or two voxels' worth of millimetres away in space."""
    values = torch.from_numpy(blobs())
    labels = (values > 40).to(torch.int32)
    affine, matrix = AFFINE, None
    if initial:
        matrix = np.eye(4)
        matrix[:3, 3] = AFFINE[:3, :3] @ [SHIFT, 0, 0]
        affine = matrix @ AFFINE
        moving, moved = values, labels
    else:
        moving, moved = values.roll(SHIFT, 0), labels.roll(SHIFT, 0)
    points = np.array([[8.0, 9, 8], [10, 7, 6]]) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    there = points + AFFINE[:3, :3] @ [SHIFT, 0, 0]
    lps = np.array([-1.0, -1, 1])
    return RealPair(
        name,
        Image(values, AFFINE),
        Image(moving, affine),
        Image(labels, AFFINE),
        Image(moved, affine),
        (1,),
        labels > 0,
        landmarks=(points * lps, there * lps),
        initial=matrix,
    )


def shift_transform(pair: RealPair) -> Transform:
    displacement = torch.zeros(3, *SHAPE)
    displacement[0] = SHIFT
    return Transform(displacement, pair.fixed_labels.geometry, pair.moving_labels.geometry)
