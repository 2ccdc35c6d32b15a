"""What every transform can do, whatever it is made of: map points, warp images, be composed, inverted and written.

A transform maps fixed physical points to moving physical points. Its kinds: `Affine`; a dense displacement
(`neuralreg.transforms.Transform`); a fitted network (`neuralreg.saved_field.SavedField`); the pointwise inverse of one
of these two (`neuralreg.inversion.Inverse`); and a `Chain` of such.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.affines import invert_affine
from neuralreg.errors import InputError
from neuralreg.images import Geometry, Image
from neuralreg.reading import lps_flip
from neuralreg.resampling import resampler
from neuralreg.slabs import affine_at, lattice, slabs

if TYPE_CHECKING:
    from neuralreg.transforms import Transform

INTERPOLATIONS = ("linear", "nearest", "label")
IMAGES = ("fixed", "moving")


class SpatialMap(ABC):
    """A transform: fixed physical point -> moving physical point, in 2-D or 3-D.

    ``grid`` is the grid that it lies on, where it has one; ``moving``, where known, the moving image's grid.
    ``last_affine`` (ndim+1, ndim+1), RAS millimetres, is what it ends with: the identity where that is no affine.
    """

    moving: Geometry | None = None

    @property
    @abstractmethod
    def ndim(self) -> int: ...

    @property
    def grid(self) -> Geometry | None:
        return None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def last_affine(self) -> np.ndarray:
        return np.eye(self.ndim + 1)

    @abstractmethod
    def moved(self, points: Tensor) -> Tensor:
        """Moving points (ndim, *any) of fixed points (ndim, *any), both RAS millimetres, float64."""

    @abstractmethod
    def inverted(self) -> SpatialMap:
        """The inverse, asked point by point; `inverse` gives it on a grid."""

    def transform_points(self, points: Any, space: str = "LPS") -> np.ndarray:
        """Map points (n, ndim) in millimetres from fixed to moving space; ``space`` ("LPS" or "RAS") of both.

        Points outside a displacement field's domain stay where they are. Note that images move the other way: a
        landmark of the fixed image goes to its place in the moving image.
        """
        if space not in ("LPS", "RAS"):
            raise InputError(f"unknown space '{space}' of points; use LPS or RAS")
        points = np.asarray(points, dtype=np.float64).reshape(-1, self.ndim)
        sign = np.diag(lps_flip(self.ndim))[:-1] if space == "LPS" else np.ones(self.ndim)
        moved = self.moved(torch.from_numpy((points * sign).T.copy()).to(self.device))
        return moved.cpu().numpy().T * sign

    def apply_to_points(self, points: Any, space: str = "LPS", image: str = "fixed") -> np.ndarray:
        """The places, in the other image, of points (n, ndim) of ``image``: "fixed" or "moving".

        Points of the fixed image go to the moving image by the transform itself, as `transform_points` has it; points
        of the moving image go to the fixed image by its inverse.
        """
        if image not in IMAGES:
            raise InputError(f"unknown image '{image}' of points; use fixed or moving")
        return (self if image == "fixed" else self.inverted()).transform_points(points, space)

    def warp(
        self, image: Image, reference: Geometry | None = None, interpolation: str = "linear", fill: float = 0
    ) -> Image:
        """The moving ``image`` resampled on ``reference`` (default: the transform's grid), as ITK resamples.

        interpolation: "linear" (float32 result), "nearest", or "label": each output voxel takes the label
        with the largest linearly interpolated indicator (ties: the lowest label). The last two keep the
        data type. Positions more than half a voxel outside the moving image get ``fill``.
        """
        if interpolation not in INTERPOLATIONS:
            raise InputError(f"unknown interpolation '{interpolation}'; use {', '.join(INTERPOLATIONS)}")
        reference = self._given(reference)
        moving = image.geometry
        if {reference.ndim, moving.ndim} != {self.ndim}:
            raise InputError(
                f"the transform is {self.ndim}-D, the moving image {moving.ndim}-D and the "
                f"reference {reference.ndim}-D; give images of the transform's dimension"
            )
        read, dtype = resampler(image.data.to(self.device), interpolation)
        out = torch.empty(reference.shape, dtype=dtype)
        for part in slabs(reference.shape):
            points = self.moving_voxels(reference, moving, part)
            size = torch.tensor(moving.shape, device=self.device).view(-1, *[1] * moving.ndim)
            inside = ((points >= -0.5) & (points < size - 0.5)).all(0)
            values = read(points)
            filled = torch.tensor(fill, dtype=dtype, device=self.device)
            out[part] = torch.where(inside, values, filled).cpu()
        return Image(out.to(image.data.device), reference.affine)

    def moving_voxels(self, reference: Geometry, moving: Geometry, part: slice) -> Tensor:
        """(ndim, *slab) float32: the moving voxels that a slab of the reference grid reads."""
        there = self.moved(self._world(reference, part))
        return affine_at(np.linalg.inv(moving.affine)[:-1], there).float()

    def dense(self, grid: Geometry | None = None) -> Transform:
        """The same map as a displacement on ``grid`` (default: its own), followed by `last_affine`."""
        from neuralreg.transforms import Transform

        grid = self._given(grid)
        if grid.ndim != self.ndim:
            raise InputError(
                f"the transform is {self.ndim}-D, the grid {grid.ndim}-D; give a grid of the "
                f"transform's dimension"
            )
        back = np.linalg.inv(self.last_affine @ grid.affine)[:-1]
        identity = np.eye(self.ndim, self.ndim + 1)
        out = torch.empty(self.ndim, *grid.shape, device=self.device)
        for part in slabs(grid.shape):
            there = affine_at(back, self.moved(self._world(grid, part)))
            out[:, part] = there - lattice(identity, grid.shape, part, out.device, torch.float64)
        return Transform(out, grid, self.moving, self.last_affine)

    def _world(self, grid: Geometry, part: slice) -> Tensor:
        return lattice(grid.affine[:-1].copy(), grid.shape, part, self.device, torch.float64)

    def _given(self, grid: Geometry | None) -> Geometry:
        grid = grid or self.grid
        if grid is None:
            raise InputError(
                "this transform has no grid of its own; give a reference image (--reference), or its grid"
            )
        return grid

    def inverse(self, moving: Geometry | None = None) -> Transform:
        """The map moving -> fixed as a displacement on the moving grid."""
        moving = moving or self.moving
        if moving is None:
            raise ValueError("this transform does not know the moving grid: give it")
        return self.inverted().dense(moving)

    def compose(self, then: SpatialMap) -> SpatialMap:
        """x -> then(self(x)): this transform leads to the space that ``then`` starts from."""
        return compose(self, then)

    def save(
        self,
        path: str | os.PathLike[str],
        format: str | None = None,
        reference: Geometry | None = None,
        moving: Geometry | None = None,
        **options: Any,
    ) -> None:
        """Write the transform in the ``format`` of that name, by default the one of the path's suffix.

        ``reference`` is the grid that a displacement is written on, by default the transform's own; ``moving`` the
        moving image's grid, which formats in voxels count in. `neuralreg.formats` lists formats and their options.
        """
        from neuralreg.formats import write

        write(self, path, format, reference, moving, **options)

    @staticmethod
    def load(path: str | os.PathLike[str], format: str | None = None, **given: Any) -> SpatialMap:
        """`neuralreg.load_transform`."""
        from neuralreg.formats import read

        return read(path, format, **given)


class GridMap(SpatialMap):
    """A displacement over the ``fixed`` grid and an affine behind it: y = initial (A_fixed (v + u(v)))."""

    fixed: Geometry
    initial: np.ndarray

    @property
    def ndim(self) -> int:
        return self.fixed.ndim

    @property
    def last_affine(self) -> np.ndarray:
        return self.initial

    @property
    def grid(self) -> Geometry:
        return self.fixed

    @abstractmethod
    def displacement_at(self, voxels: Tensor) -> Tensor:
        """u (ndim, *any) in fixed voxels at fixed voxels (ndim, *any); beyond the grid that of its border."""

    def undisplaced(self, voxels: Tensor) -> Tensor:
        """The v (ndim, *any) with v + u(v) = ``voxels`` (ndim, *any), good to a thousandth of a voxel.

        The linear part of u, such as a rotation that a file holds in its displacements, is undone at once, and the
        rest by iteration.
        """
        from neuralreg.inversion import fixed_point, linear_part

        start = voxels.flatten(1)
        undo = torch.linalg.inv(linear_part(self)).to(start)

        def target(there: Tensor, v: Tensor) -> Tensor:
            return v + undo @ (there - v - self.displacement_at(v).to(v))

        found = fixed_point(target, start, start, iterations=100, tolerance=1e-3)
        return found.view_as(voxels)

    def inverted(self) -> SpatialMap:
        from neuralreg.inversion import Inverse

        return Inverse(self)


@dataclass(frozen=True, eq=False)
class Affine(SpatialMap):
    """A transform that is an affine ``matrix`` (ndim+1, ndim+1), RAS millimetres, and nothing else."""

    matrix: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", np.array(self.matrix, dtype=np.float64))

    @property
    def ndim(self) -> int:
        return len(self.matrix) - 1

    @property
    def last_affine(self) -> np.ndarray:
        return self.matrix

    def moved(self, points: Tensor) -> Tensor:
        return affine_at(self.matrix[:-1], points)

    def inverted(self) -> SpatialMap:
        return Affine(invert_affine(self.matrix))

    def _given(self, grid: Geometry | None) -> Geometry:
        # any grid carries no displacement: this one holds all points within 4 m of the origin
        affine = np.diag([4000.0] * self.ndim + [1.0])
        affine[:-1, -1] = -2000.0
        return grid or Geometry((2,) * self.ndim, affine)


@dataclass(frozen=True, eq=False)
class Chain(SpatialMap):
    """Transforms one behind the other: a fixed point goes through the first one first. `compose` makes these."""

    parts: tuple[SpatialMap, ...]

    @property
    def ndim(self) -> int:
        return self.parts[0].ndim

    @property
    def grid(self) -> Geometry | None:
        return self.parts[0].grid

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def last_affine(self) -> np.ndarray:
        last = self.parts[-1]
        return last.matrix @ self.parts[-2].last_affine if isinstance(last, Affine) else last.last_affine

    @property
    def moving(self) -> Geometry | None:  # type: ignore[override]
        return self.parts[-1].moving

    def moved(self, points: Tensor) -> Tensor:
        for part in self.parts:
            points = part.moved(points)
        return points

    def inverted(self) -> SpatialMap:
        return Chain(tuple(part.inverted() for part in reversed(self.parts)))


def compose(*maps: SpatialMap) -> SpatialMap:
    """x -> maps[-1](... maps[0](x)): points go through the first one first; neighbouring affines become one.

    Raises:
        InputError: nothing to compose, or transforms of different dimension.
    """
    flat = [part for each in maps for part in (each.parts if isinstance(each, Chain) else (each,))]
    if not flat:
        raise InputError("there is no transform to compose; give one or more")
    parts: list[SpatialMap] = []
    for part in flat:
        if part.ndim != flat[0].ndim:
            raise InputError(f"a {flat[0].ndim}-D transform cannot stand before a {part.ndim}-D one")
        last = parts[-1] if parts else None
        if isinstance(part, Affine) and isinstance(last, Affine):
            parts[-1] = Affine(part.matrix @ last.matrix)
        else:
            parts.append(part)
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))
