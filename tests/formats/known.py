"""Transforms that are known exactly, at every point of the world, and what they do to images and points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from neuralreg.images import Geometry, Image
from neuralreg.transforms import Transform
from tests.geometry import CENTRE, GRIDS, image_on, initial_affine, pattern, world_of

FLIP = np.array([-1.0, -1.0, 1.0])
# Mean error of a linearly interpolated pattern, in its units; largest of a linearly interpolated warp, in millimetres.
IMAGE_ERROR, POINT_ERROR = 0.01, 0.12


def shift(points: np.ndarray) -> np.ndarray:
    return points + np.array([3.0, -4.0, 5.0])


def bend(points: np.ndarray) -> np.ndarray:
    """A smooth warp of millimetres, then `initial_affine`."""
    x = (points - np.array(CENTRE)) / 30
    wave = np.stack(
        [np.sin(x[..., 1] + 0.3), 1.4 * np.cos(x[..., 2] - 0.5), -0.8 * np.sin(x[..., 0] + x[..., 1])], -1
    )
    matrix = initial_affine()
    return (points + 2.5 * wave + np.array([0.5, -1.5, 1.0])) @ matrix[:3, :3].T + matrix[:3, 3]


def undone(forward: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The inverse of a map that is near to `initial_affine` or a shift."""

    def inverse(points: np.ndarray) -> np.ndarray:
        found = points
        for _ in range(60):
            found = found + 0.7 * (points - forward(found))
        assert np.abs(forward(found) - points).max() < 1e-4
        return found

    return inverse


@dataclass(frozen=True)
class Known:
    """A transform of ours and the same map exactly: ``truth`` at RAS points; the grids that it leads from and to."""

    transform: Transform
    truth: Callable[[np.ndarray], np.ndarray]
    fixed: Geometry
    moving: Geometry

    def image(self) -> Image:
        """The moving image."""
        return image_on(self.moving)

    def points(self) -> np.ndarray:
        """RAS points (n, 3) at voxels and between them; they and their neighbours' places are well inside the grids."""
        random = np.random.default_rng(0)
        last = np.array(self.fixed.shape) - 1
        index = np.vstack([random.uniform(1, last - 1, (60, 3)), random.integers(1, last, (60, 3))])
        points = self.fixed.voxel_to_world(index)
        there = self.moving.world_to_voxel(self.truth(points))
        inside = ((there > 2.5) & (there < np.array(self.moving.shape) - 3.5)).all(1)
        assert inside.sum() > 20
        return points[inside]

    def image_error(self, warped: np.ndarray) -> float:
        """Mean difference from the truth over the voxels whose place lies well inside the moving image."""
        there = self.truth(world_of(self.fixed))
        voxels = self.moving.world_to_voxel(there.reshape(-1, 3)).reshape(there.shape)
        inside = ((voxels > 0.5) & (voxels < np.array(self.moving.shape) - 1.5)).all(-1)
        assert inside.mean() > 0.3
        return float(np.abs(warped - pattern(there))[inside].mean())

    def point_error(self, mapped: np.ndarray) -> float:
        """Largest distance of mapped RAS points from their true places, mm."""
        return float(np.linalg.norm(mapped - self.truth(self.points()), axis=1).max())


@cache
def known(name: str, grids: str, backward: bool = False) -> Known:
    """The shift or the bend on a pair of GRIDS; ``backward``: its inverse, from the moving grid to the fixed one."""
    fixed, moving = GRIDS[grids]
    forward, initial = {"shift": (shift, np.eye(4)), "bend": (bend, initial_affine())}[name]
    there = forward(world_of(fixed)).reshape(-1, 3)
    back = np.linalg.inv(initial @ fixed.affine)
    u = (there @ back[:3, :3].T + back[:3, 3]).reshape(*fixed.shape, 3)
    u -= np.stack(np.meshgrid(*[np.arange(n) for n in fixed.shape], indexing="ij"), -1)
    transform = Transform(torch.from_numpy(np.moveaxis(u, -1, 0)), fixed, moving, initial)
    if not backward:
        return Known(transform, forward, fixed, moving)
    return Known(transform.inverse(moving), undone(forward), moving, fixed)
