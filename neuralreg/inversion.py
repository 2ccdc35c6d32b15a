"""Undoing a displacement: one iteration for whole grids and for single points, and how well it went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neuralreg.affines import invert_affine
from neuralreg.maps import SpatialMap
from neuralreg.resampling import sample_points
from neuralreg.slabs import affine_at, lattice, mix, slabs, squared_norm

if TYPE_CHECKING:
    from neuralreg.images import Geometry
    from neuralreg.maps import GridMap
    from neuralreg.transforms import Transform


@dataclass(frozen=True, eq=False)
class Inverse(SpatialMap):
    """The inverse of a map on a grid, asked point by point: it has no grid of its own and loses nothing to one.

    Beyond the map's grid its displacement is taken as constant. Where the map folds there is no inverse, and what the
    last iteration reached is given.
    """

    of: GridMap

    @property
    def ndim(self) -> int:
        return self.of.ndim

    @property
    def device(self) -> torch.device:
        return self.of.device

    def moved(self, points: Tensor) -> Tensor:
        back = invert_affine(self.of.initial @ self.of.fixed.affine)
        voxels = self.of.undisplaced(affine_at(back[:-1], points))
        return affine_at(self.of.fixed.affine[:-1], voxels)

    def inverted(self) -> SpatialMap:
        return self.of


def fixed_point(
    target: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    guess: Tensor,
    iterations: int,
    tolerance: float,
) -> Tensor:
    """The d (ndim, n) with d = target(start, d), from ``guess``; ``start`` (ndim, n) belongs to the points.

    A point is done when its update is below ``tolerance``; where updates grow the step is halved, which inverts strong
    but still invertible maps too.
    """
    d = guess
    solved = d.clone()
    active = torch.arange(d.shape[1], device=d.device)
    step = torch.ones_like(d[0])
    last = torch.full_like(step, torch.inf)
    for _ in range(iterations):
        update = target(start, d) - d
        size = squared_norm(update)
        # an update that grows: the plain iteration oscillates, the map stretches more than twofold here
        step = torch.where(size > last, (step * 0.5).clamp(min=0.125), step)
        d, last = d.addcmul(step, update), size
        left = (size > tolerance**2).nonzero()[:, 0]
        if len(left) == 0:
            break
        if len(left) < 0.8 * len(active):
            solved[:, active] = d
            active, step, last = active[left], step[left], last[left]
            start, d = start.index_select(1, left), d.index_select(1, left)
    solved[:, active] = d
    return solved


def linear_part(of: GridMap) -> Tensor:
    """The linear map (ndim, ndim) that is nearest to v -> v + u(v), least squares over a few voxels of the grid.

    An axis of one voxel, along which u says nothing, counts as it is.
    """
    axes = [
        torch.linspace(0, n - 1, min(n, 8), dtype=torch.float64, device=of.device) for n in of.fixed.shape
    ]
    voxels = torch.stack([x.flatten() for x in torch.meshgrid(*axes, indexing="ij")])
    moved = of.displacement_at(voxels).to(voxels)
    voxels, moved = (x - x.mean(1, keepdim=True) for x in (voxels, moved))
    return torch.eye(of.ndim).to(voxels) + moved @ torch.linalg.pinv(voxels)


def inverse_consistency(
    forward: Transform, inverse: Transform, mask: Tensor | None = None
) -> dict[str, float]:
    """|inverse(forward(x)) - x| in millimetres over the fixed voxels x whose image lies inside the moving
    grid.

    ``mask`` (*sp), nonzero = counted. Returns mean_mm, p95_mm, max_mm (nan where no voxel counts) and
    inside_fraction, the part of the (masked) voxels that counted.
    """
    error, asked = inverse_errors(forward, inverse, mask)
    if not error.size:
        return {**dict.fromkeys(("mean_mm", "p95_mm", "max_mm"), float("nan")), "inside_fraction": 0.0}
    return {
        "mean_mm": float(error.mean(dtype=np.float64)),
        "p95_mm": float(np.percentile(error, 95)),
        "max_mm": float(error.max()),
        "inside_fraction": error.size / asked,
    }


def inverse_errors(
    forward: Transform, inverse: Transform, mask: Tensor | None = None
) -> tuple[np.ndarray, int]:
    """The errors (n,) of `inverse_consistency`, one a voxel that counted, and how many voxels there were."""
    grid, moving = forward.fixed, inverse.fixed
    back = torch.from_numpy(inverse.voxel_affine(grid))
    to_mm = torch.from_numpy(grid.affine[:-1, :-1])
    identity = np.eye(grid.ndim, grid.ndim + 1)
    size = torch.tensor(moving.shape, device=forward.displacement.device).view(-1, *[1] * grid.ndim)
    errors, asked = [], 0
    for part in slabs(grid.shape):
        points = forward.moving_voxels(grid, moving, part)
        counted = ((points >= 0) & (points <= size - 1)).all(0)
        if mask is not None:
            chosen = mask[part].to(counted.device) != 0
            counted &= chosen
            asked += int(chosen.sum())
        else:
            asked += counted.numel()
        points = points[:, counted]
        again = mix(back[:, :-1], points + sample_points(inverse.displacement, points))
        again += back[:, -1:].to(again)
        again -= lattice(identity, grid.shape, part, again.device)[:, counted]
        errors.append(squared_norm(mix(to_mm, again)).sqrt().cpu())
    return torch.cat(errors).numpy(), asked


def half(grid: Geometry) -> Geometry:
    """Every second voxel of a grid, and one more where its end would otherwise lie outside."""
    from neuralreg.images import Geometry

    affine = grid.affine.copy()
    affine[:-1, :-1] *= 2
    return Geometry(tuple(n // 2 + 1 if n > 1 else 1 for n in grid.shape), affine)
