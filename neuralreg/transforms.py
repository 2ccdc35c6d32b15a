"""The result of a registration as a thing of its own: a dense map of fixed physical points to moving
physical points.

    y = initial (A_fixed (i + u(i)))        A_fixed: fixed voxel -> world, u: displacement in fixed voxels

On disk a transform is what ITK calls a displacement field: y - x at every fixed voxel, in LPS millimetres.
Such a field ends half a voxel outside its outermost voxels, and beyond them the map is the identity, in ITK
and here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.affines import center_alignment, invert_affine, read_affine, voxel_affine
from neuralreg.images import Geometry
from neuralreg.inversion import fixed_point, half, inverse_consistency
from neuralreg.maps import INTERPOLATIONS, Affine, Chain, GridMap, SpatialMap, compose
from neuralreg.reading import lps_flip
from neuralreg.resampling import sample_points
from neuralreg.slabs import affine_at, lattice, mix, slabs

__all__ = [
    "INTERPOLATIONS", "Affine", "Chain", "SpatialMap", "Transform", "center_alignment", "compose",
    "inverse_consistency", "load_transform", "read_affine",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Transform(GridMap):
    """A dense transform, fixed physical point -> moving physical point, in 2-D or 3-D.

    ``displacement`` (ndim, *sp) float32, in fixed voxels, channel k along array axis k. ``fixed`` is the
    grid that it lies on. ``moving``, where known, is the moving image's grid. ``initial`` (ndim+1, ndim+1):
    an affine in RAS world millimetres that follows the displacement; the identity by default.
    """

    displacement: Tensor
    fixed: Geometry
    moving: Geometry | None = None
    initial: Any = None

    def __post_init__(self) -> None:
        d = self.fixed.ndim
        if tuple(self.displacement.shape) != (d, *self.fixed.shape):
            raise ValueError(
                f"displacement {tuple(self.displacement.shape)} does not fit a fixed grid of "
                f"{self.fixed.shape}: it must be ({d}, *grid)"
            )
        initial = np.eye(d + 1) if self.initial is None else np.array(self.initial, dtype=np.float64)
        if initial.shape != (d + 1, d + 1):
            raise ValueError(
                f"a {d}-D transform needs an initial affine of {d + 1} x {d + 1}, got {initial.shape}"
            )
        object.__setattr__(self, "initial", initial)
        object.__setattr__(self, "displacement", self.displacement.detach().to(torch.float32))

    def voxel_affine(self, moving: Geometry | None = None) -> np.ndarray:
        """(ndim, ndim+1): fixed voxel -> moving voxel without the displacement, that is A_moving^-1 initial
        A_fixed.

        With it ``kernels.warp(moving, displacement, affine)`` reads the moving image at A (i + u(i)).
        """
        moving = moving or self.moving
        if moving is None:
            raise ValueError("this transform does not know the moving grid: give it")
        return voxel_affine(self.fixed, moving, self.initial)

    def to_physical(self) -> Tensor:
        """(ndim, *sp) float32: moving point minus fixed point at every fixed voxel, LPS millimetres."""
        out = torch.empty_like(self.displacement)
        flip = np.diag(lps_flip(self.ndim))[:-1, None]
        offset, linear = (flip * m for m in self._physical_parts())
        for part in slabs(self.fixed.shape):
            out[:, part] = lattice(offset, self.fixed.shape, part, out.device) + mix(
                linear, self.displacement[:, part]
            )
        return out

    def stored(self) -> np.ndarray:
        """:meth:`to_physical` as files hold it, rounded to a 4096th of a voxel or less."""
        grain = 2.0 ** (np.floor(np.log2(min(self.fixed.spacing))) - 12)
        return self.to_physical().div_(grain).round_().mul_(grain).cpu().numpy()

    def _physical_parts(self) -> tuple[np.ndarray, np.ndarray]:
        """M (ndim, ndim+1) and L (ndim, ndim) with y - x = M [i, 1] + L u, in RAS millimetres."""
        whole = self.initial @ self.fixed.affine
        return (whole - self.fixed.affine)[:-1], whole[:-1, :-1]

    def displacement_at(self, voxels: Tensor) -> Tensor:
        return sample_points(self.displacement, voxels)

    def moved(self, points: Tensor) -> Tensor:
        return points + self._moved_by(affine_at(np.linalg.inv(self.fixed.affine)[:-1], points))

    def _moved_by(self, voxels: Tensor) -> Tensor:
        """y - x in RAS mm (ndim, *any) at fixed voxel coordinates (ndim, *any); 0 outside the domain."""
        offset, linear = self._physical_parts()
        last = torch.tensor(self.fixed.shape, dtype=voxels.dtype, device=voxels.device) - 1
        last = last.view(-1, *[1] * (voxels.ndim - 1))
        inside = ((voxels >= -0.5) & (voxels < last + 0.5)).all(0)
        clamped = torch.minimum(voxels.clamp(min=0), last)  # ITK: constant over the outer half voxel
        u = self.displacement_at(clamped).to(voxels)
        return (affine_at(offset, clamped) + mix(linear, u)) * inside

    def moving_voxels(self, reference: Geometry, moving: Geometry, part: slice) -> Tensor:
        device = self.displacement.device
        if reference is self.fixed or reference.same_grid(self.fixed, tolerance=1e-4):
            affine = self.voxel_affine(moving)
            return lattice(affine, reference.shape, part, device) + mix(
                affine[:, :-1], self.displacement[:, part]
            )
        back = np.linalg.inv(moving.affine)
        to_fixed = (np.linalg.inv(self.fixed.affine) @ reference.affine)[:-1]
        moved = self._moved_by(lattice(to_fixed, reference.shape, part, device))
        straight = (back @ reference.affine)[:-1]
        return lattice(straight, reference.shape, part, device) + mix(back[:-1, :-1], moved)

    @property
    def device(self) -> torch.device:
        return self.displacement.device

    def dense(self, grid: Geometry | None = None) -> Transform:
        same = grid is None or grid.same_grid(self.fixed, tolerance=1e-4)
        return self if same else super().dense(grid)

    def on_grid(self, grid: Geometry) -> Transform:
        """The same map, its displacement sampled linearly on another grid, constant beyond the old one."""
        linear = (np.linalg.inv(grid.affine) @ self.fixed.affine)[:-1, :-1]
        to_fixed = (np.linalg.inv(self.fixed.affine) @ grid.affine)[:-1]
        out = self.displacement.new_empty((self.ndim, *grid.shape))
        for part in slabs(grid.shape):
            points = lattice(to_fixed, grid.shape, part, out.device)
            out[:, part] = mix(linear, self.displacement_at(points))
        return Transform(out, grid, self.moving, self.initial)

    def inverse(
        self, moving: Geometry | None = None, iterations: int = 50, tolerance: float = 0.02
    ) -> Transform:
        """The map moving -> fixed on the moving grid: fixed point d <- -A u(A^-1 (j + d)), in moving voxels.

        A grid of half the resolution is inverted first and gives the start. A voxel is done when its update
        is below ``tolerance`` voxels (`neuralreg.inversion.fixed_point`). Where the map folds there is no inverse, and
        what the last iteration reached is returned: `inverse_consistency` tells how good it is. Beyond the fixed grid u
        is taken as constant. Allocates the result, and slabs.
        """
        moving = moving or self.moving
        forward = np.vstack([self.voxel_affine(moving), np.eye(self.ndim + 1)[-1]])
        assert moving is not None
        linear, back = forward[:-1, :-1], invert_affine(forward)[:-1]
        if max(moving.shape) > 16:
            coarse = self.inverse(half(moving), iterations, tolerance / 2)
            out = coarse.on_grid(moving).displacement
        else:
            out = self.displacement.new_zeros((self.ndim, *moving.shape))

        def target(start: Tensor, d: Tensor) -> Tensor:
            return -mix(linear, self.displacement_at(start + mix(back[:, :-1], d)))

        for part in slabs(moving.shape):
            start = lattice(back, moving.shape, part, out.device).flatten(1)
            d = out[:, part]
            solved = fixed_point(target, start, d.reshape(self.ndim, -1), iterations, tolerance)
            out[:, part] = solved.view_as(d)
        return Transform(out, moving, self.fixed, invert_affine(self.initial))


def load_transform(
    path: str | os.PathLike[str],
    format: str | None = None,
    reference: Geometry | None = None,
    moving: Geometry | None = None,
    **options: Any,
) -> SpatialMap:
    """Read a transform of any format that `neuralreg.formats` lists, whatever tool wrote it.

    ``format`` names the format where the file's content does not tell (voxel displacements). ``reference`` and
    ``moving``, the grids of the fixed and of the moving image, are needed by formats that hold neither.

    The result is a `Transform` for a displacement field, an `Affine`, a `SavedField` (.pt of ``--field-out``), or a
    `Chain` of these; ``.dense()`` makes a `Transform` of each.

    Raises:
        InputError: no such file, a damaged one, or one whose format must be named.
    """
    from neuralreg.formats import read

    return read(path, format, reference, moving, **options)
