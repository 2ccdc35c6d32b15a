"""Transforms one behind the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuralreg.images import Geometry
from neuralreg.transforms import Affine, Transform, compose


def smooth(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A displacement that is linear between few points, so that linear reading is close to exact."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, len(shape), *[3] * len(shape), generator=generator)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)[0]


@pytest.mark.parametrize("shape", [(20, 16), (14, 12, 16)])
def test_points_go_through_both(shape: tuple[int, ...]) -> None:
    ndim = len(shape)
    random = np.random.default_rng(0)
    affines = [np.eye(ndim + 1) for _ in range(2)]
    for affine in affines:
        affine[:ndim, :ndim] += 0.05 * random.normal(size=(ndim, ndim))
        affine[:ndim, ndim] = random.normal(size=ndim)
    initial = np.eye(ndim + 1)
    initial[:ndim, ndim] = 0.7
    first = Transform(smooth(shape, 0), Geometry(shape, affines[0]), None, initial)
    larger = tuple(n + 10 for n in shape)
    affines[1][:ndim, ndim] -= 5
    then = Transform(smooth(larger, 1), Geometry(larger, affines[1]))
    both = compose(first, then).dense()
    voxels = np.stack([random.integers(1, n - 1, 30) for n in shape], 1)
    points = voxels @ affines[0][:ndim, :ndim].T + affines[0][:ndim, ndim]
    expected = then.transform_points(first.transform_points(points, "RAS"), "RAS")
    np.testing.assert_allclose(both.transform_points(points, "RAS"), expected, atol=2e-4)
    assert np.abs(expected - points).max() > 0.5
    with pytest.raises(ValueError, match="cannot stand before"):
        compose(first, Affine(np.eye(6 - ndim)))
