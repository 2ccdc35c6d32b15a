"""The result of a registration as a thing of its own: a dense map of fixed physical points to moving
physical points.

    y = initial (A_fixed (i + u(i)))        A_fixed: fixed voxel -> world, u: displacement in fixed voxels

On disk a transform is what ITK calls a displacement field: y - x at every fixed voxel, in LPS millimetres.
Such a field ends half a voxel outside its outermost voxels, and beyond them the map is the identity, in ITK
and here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.affines import center_alignment, invert_affine, read_affine
from neuralreg.errors import InputError
from neuralreg.images import Geometry, Image
from neuralreg.reading import check_affine, lps_flip, open_nibabel, voxels_of
from neuralreg.resampling import resampler, sample_points
from neuralreg.writing import IMAGE_SUFFIXES, check_writable, save_nifti, suffix_of

__all__ = ["Transform", "center_alignment", "inverse_consistency", "load_transform", "read_affine"]

INTERPOLATIONS = ("linear", "nearest", "label")
# what works on coordinates goes through the volume in slabs of about this many voxels: beside the
# displacement itself (12 bytes a voxel) nothing of that size is then needed but results
SLAB_VOXELS = 1 << 19
ITK_SHEAR_TOLERANCE = 1e-4
FIELD_SUFFIX = ".pt"
VECTOR_INTENT = 1007  # NIFTI_INTENT_VECTOR: ITK reads its vectors unchanged, as LPS


@dataclass(frozen=True, eq=False)
class Transform:
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

    @classmethod
    def from_affine(cls, matrix: np.ndarray) -> Transform:
        """The transform of an affine (ndim+1, ndim+1) alone, RAS mm, for points within 4 m of the origin."""
        d = len(matrix) - 1
        affine = np.diag([4000.0] * d + [1.0])
        affine[:d, d] = -2000.0
        return cls(torch.zeros(d, *[2] * d), Geometry((2,) * d, affine), None, matrix)

    @property
    def ndim(self) -> int:
        return self.fixed.ndim

    def voxel_affine(self, moving: Geometry | None = None) -> np.ndarray:
        """(ndim, ndim+1): fixed voxel -> moving voxel without the displacement, that is A_moving^-1 initial
        A_fixed.

        With it ``kernels.warp(moving, displacement, affine)`` reads the moving image at A (i + u(i)).
        """
        moving = moving or self.moving
        if moving is None:
            raise ValueError("this transform does not know the moving grid: give it")
        return (np.linalg.inv(moving.affine) @ self.initial @ self.fixed.affine)[:-1]

    def to_physical(self) -> Tensor:
        """(ndim, *sp) float32: moving point minus fixed point at every fixed voxel, LPS millimetres."""
        out = torch.empty_like(self.displacement)
        flip = np.diag(lps_flip(self.ndim))[:-1, None]
        offset, mix = (torch.from_numpy(flip * m) for m in self._physical_parts())
        for part in _slabs(self.fixed.shape):
            out[:, part] = _lattice(offset, self.fixed.shape, part, out.device) + _mix(
                mix, self.displacement[:, part]
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

    def _displacement_at(self, points: Tensor) -> Tensor:
        """y - x in RAS mm (ndim, *any) at fixed voxel coordinates (ndim, *any); 0 outside the domain."""
        offset, mix = (torch.from_numpy(m) for m in self._physical_parts())
        last = torch.tensor(self.fixed.shape, dtype=points.dtype, device=points.device) - 1
        last = last.view(-1, *[1] * (points.ndim - 1))
        inside = ((points >= -0.5) & (points < last + 0.5)).all(0)
        clamped = torch.minimum(points.clamp(min=0), last)  # ITK: constant over the outer half voxel
        u = sample_points(self.displacement, clamped).to(points.dtype)
        moved = _mix(offset[:, :-1], clamped) + _mix(mix, u)
        moved += offset[:, -1].to(moved).view(-1, *[1] * (points.ndim - 1))
        return moved * inside

    def transform_points(self, points: Any, space: str = "LPS") -> np.ndarray:
        """Map points (n, ndim) in millimetres from fixed to moving space; ``space`` ("LPS" or "RAS") of both.

        Points outside the domain stay where they are. Note that images move the other way: a landmark of
        the fixed image goes to its place in the moving image.
        """
        if space not in ("LPS", "RAS"):
            raise InputError(f"unknown space '{space}' of points; use LPS or RAS")
        points = np.asarray(points, dtype=np.float64).reshape(-1, self.ndim)
        sign = np.diag(lps_flip(self.ndim))[:-1] if space == "LPS" else np.ones(self.ndim)
        voxels = torch.from_numpy(self.fixed.world_to_voxel(points * sign).T.copy())
        moved = self._displacement_at(voxels.to(self.displacement.device))
        return points + moved.cpu().numpy().T * sign

    def warp(
        self, image: Image, reference: Geometry | None = None, interpolation: str = "linear", fill: float = 0
    ) -> Image:
        """The moving ``image`` resampled on ``reference`` (default: the fixed grid), as ITK resamples.

        interpolation: "linear" (float32 result), "nearest", or "label": each output voxel takes the label
        with the largest linearly interpolated indicator (ties: the lowest label). The last two keep the
        data type. Positions more than half a voxel outside the moving image get ``fill``.
        """
        if interpolation not in INTERPOLATIONS:
            raise InputError(f"unknown interpolation '{interpolation}'; use {', '.join(INTERPOLATIONS)}")
        reference = reference or self.fixed
        moving = image.geometry
        if {reference.ndim, moving.ndim} != {self.ndim}:
            raise InputError(
                f"the transform is {self.ndim}-D, the moving image {moving.ndim}-D and the "
                f"reference {reference.ndim}-D; give images of the transform's dimension"
            )
        device = self.displacement.device
        read, dtype = resampler(image.data.to(device), interpolation)
        out = torch.empty(reference.shape, dtype=dtype)
        for part in _slabs(reference.shape):
            points = self._moving_voxels(reference, moving, part)
            size = torch.tensor(moving.shape, device=device).view(-1, *[1] * moving.ndim)
            inside = ((points >= -0.5) & (points < size - 0.5)).all(0)
            values = read(points)
            out[part] = torch.where(inside, values, torch.tensor(fill, dtype=dtype, device=device)).cpu()
        return Image(out.to(image.data.device), reference.affine)

    def _moving_voxels(self, reference: Geometry, moving: Geometry, part: slice) -> Tensor:
        """(ndim, *slab) float32: the moving voxels that a slab of the reference grid reads."""
        device = self.displacement.device
        if reference is self.fixed or reference.same_grid(self.fixed, tolerance=1e-4):
            affine = torch.from_numpy(self.voxel_affine(moving))
            return _lattice(affine, reference.shape, part, device) + _mix(
                affine[:, :-1], self.displacement[:, part]
            )
        to_moving = torch.from_numpy(np.linalg.inv(moving.affine))[:-1]
        to_fixed = torch.from_numpy(np.linalg.inv(self.fixed.affine) @ reference.affine)[:-1]
        moved = self._displacement_at(_lattice(to_fixed, reference.shape, part, device))
        straight = torch.from_numpy(np.linalg.inv(moving.affine) @ reference.affine)[:-1]
        return _lattice(straight, reference.shape, part, device) + _mix(to_moving[:, :-1], moved)

    def on_grid(self, grid: Geometry) -> Transform:
        """The same map, its displacement sampled linearly on another grid, constant beyond the old one."""
        mix = torch.from_numpy(np.linalg.inv(grid.affine) @ self.fixed.affine)[:-1, :-1]
        to_fixed = torch.from_numpy(np.linalg.inv(self.fixed.affine) @ grid.affine)[:-1]
        out = self.displacement.new_empty((self.ndim, *grid.shape))
        for part in _slabs(grid.shape):
            points = _lattice(to_fixed, grid.shape, part, out.device)
            out[:, part] = _mix(mix, sample_points(self.displacement, points))
        return Transform(out, grid, self.moving, self.initial)

    def inverse(
        self, moving: Geometry | None = None, iterations: int = 50, tolerance: float = 0.02
    ) -> Transform:
        """The map moving -> fixed on the moving grid: fixed point d <- -A u(A^-1 (j + d)), in moving voxels.

        A grid of half the resolution is inverted first and gives the start. A voxel is done when its update
        is below ``tolerance`` voxels; where updates grow the step is halved, which inverts strong but still
        invertible maps too. Where the map folds there is no inverse, and what the last iteration reached is
        returned: `inverse_consistency` tells how good it is. Beyond the fixed grid u is taken as constant.
        Allocates the result, and slabs.
        """
        moving = moving or self.moving
        forward = np.vstack([self.voxel_affine(moving), np.eye(self.ndim + 1)[-1]])
        assert moving is not None
        linear = torch.from_numpy(forward[:-1, :-1])
        back = torch.from_numpy(invert_affine(forward)[:-1])
        if max(moving.shape) > 16:
            coarse = self.inverse(_half(moving), iterations, tolerance / 2)
            out = coarse.on_grid(moving).displacement
        else:
            out = self.displacement.new_zeros((self.ndim, *moving.shape))
        for part in _slabs(moving.shape):
            start = _lattice(back, moving.shape, part, out.device)
            d = out[:, part]
            self._fixed_point(start.flatten(1), d, linear, back[:, :-1], iterations, tolerance)
        return Transform(out, moving, self.fixed, invert_affine(self.initial))

    def _fixed_point(
        self, start: Tensor, result: Tensor, linear: Tensor, back: Tensor, iterations: int, tolerance: float
    ) -> None:
        """Bring ``result`` (ndim, *slab), a guess of d, to the fixed point; ``start`` (ndim, n) is A^-1 j."""
        d = result.reshape(self.ndim, -1)
        solved = d.clone()
        active = torch.arange(d.shape[1], device=d.device)
        step = torch.ones_like(d[0])
        last = torch.full_like(step, torch.inf)
        for _ in range(iterations):
            update = -_mix(linear, sample_points(self.displacement, start + _mix(back, d))) - d
            size = _squared_norm(update)
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
        result.copy_(solved.view_as(result))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ITK displacement field: NIfTI of dim [5, X, Y, Z, 1, 3] (2-D: [5, X, Y, 1, 1, 2]),
        intent 1007.

        LPS millimetres on the fixed grid, whole or not at all. Vectors are rounded to a 4096th of a voxel or
        less: the file is a third smaller. ITK knows no sheared grid: from one the field is first sampled on
        the nearest grid without shear that covers it.
        """
        path = check_writable(path, role="transform")
        transform = self.on_grid(_straight_cover(self.fixed)) if is_sheared(self.fixed) else self
        values = np.moveaxis(transform.stored(), 0, -1)
        values = values.reshape(*transform.fixed.shape, *[1] * (4 - self.ndim), self.ndim)
        save_nifti(path, values, transform.fixed.affine, intent=VECTOR_INTENT)


def load_transform(path: str | os.PathLike[str]) -> Transform:
    """Read an ITK displacement field in NIfTI: 5-D with intent 1007 (LPS) or 1006 (RAS vectors), millimetres.

    The result's ``initial`` is the identity: whatever affine there was is in the displacement. A saved field (.pt)
    is evaluated on the grid that it was fitted on. A file with another suffix is read as an affine
    (`read_affine`), which becomes a transform without displacement.
    """
    name = f"transform {os.fspath(path)}"
    if suffix_of(path) == FIELD_SUFFIX:
        from neuralreg.saved_field import load_saved_field

        return load_saved_field(path).transform()
    if suffix_of(path) not in IMAGE_SUFFIXES:
        return Transform.from_affine(read_affine(path, "transform"))
    image = open_nibabel(Path(path), name)
    shape = tuple(image.shape)
    intent = int(image.header["intent_code"]) if hasattr(image.header, "get_intent") else 0
    ndim = shape[-1] if len(shape) == 5 else 0
    if ndim not in (2, 3) or shape[3] != 1 or (ndim == 2 and shape[2] != 1) or intent not in (1006, 1007):
        raise InputError(
            f"{name} is not a displacement field: shape {' x '.join(map(str, shape))}, intent "
            f"{intent}; give a 5-D NIfTI with vector intent (1007) as `neuralreg register "
            f"--transform-out` and ITK write"
        )
    values = voxels_of(image, name).reshape(*shape[:ndim], ndim)
    affine = np.asarray(image.affine, dtype=np.float64)
    if ndim == 2:
        affine = affine[np.ix_([0, 1, 3], [0, 1, 3])]
    check_affine(affine, name)
    if not np.isfinite(values.sum(dtype=np.float64)):
        raise InputError(f"{name} holds NaN or infinite displacements; it cannot be applied")
    to_voxels = np.linalg.inv(affine)[:-1, :-1]
    if intent == 1007:
        to_voxels = to_voxels @ lps_flip(ndim)[:-1, :-1]
    field = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0), dtype=np.float32))
    mix = torch.from_numpy(to_voxels)
    for part in _slabs(tuple(field.shape[1:])):
        field[:, part] = _mix(mix, field[:, part])
    return Transform(field, Geometry(tuple(field.shape[1:]), affine))


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
    identity = torch.from_numpy(np.eye(grid.ndim, grid.ndim + 1))
    size = torch.tensor(moving.shape, device=forward.displacement.device).view(-1, *[1] * grid.ndim)
    errors, asked = [], 0
    for part in _slabs(grid.shape):
        points = forward._moving_voxels(grid, moving, part)
        counted = ((points >= 0) & (points <= size - 1)).all(0)
        if mask is not None:
            chosen = mask[part].to(counted.device) != 0
            counted &= chosen
            asked += int(chosen.sum())
        else:
            asked += counted.numel()
        points = points[:, counted]
        again = _mix(back[:, :-1], points + sample_points(inverse.displacement, points))
        again += back[:, -1:].to(again)
        again -= _lattice(identity, grid.shape, part, again.device)[:, counted]
        errors.append(_squared_norm(_mix(to_mm, again)).sqrt().cpu())
    return torch.cat(errors).numpy(), asked


def _slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the first axis that hold about SLAB_VOXELS voxels each."""
    planes = max(1, SLAB_VOXELS // max(1, int(np.prod(shape[1:]))))
    return (slice(a, min(a + planes, shape[0])) for a in range(0, shape[0], planes))


def _lattice(affine: Tensor, shape: tuple[int, ...], part: slice, device: torch.device) -> Tensor:
    """(rows, *slab) float32: affine (rows, ndim+1) float64 at the voxel indices of a slab along axis 0."""
    spans = [(part.start, part.stop), *((0, n) for n in shape[1:])]
    ones = [1] * len(shape)
    terms = []
    for axis, (a, b) in enumerate(spans):
        line = affine[:, axis, None] * torch.arange(a, b, dtype=torch.float64)
        terms.append(line.view(-1, *ones[:axis], b - a, *ones[axis + 1 :]))
    head = affine[:, -1].view(-1, *ones) + sum(terms[:-1])
    # the one sum that is as large as the slab runs in float32, which is good to 1e-5 voxels
    return head.to(device, torch.float32) + terms[-1].to(device, torch.float32)


def _mix(matrix: Tensor, field: Tensor) -> Tensor:
    """matrix (rows, n) applied to the channels of a field (n, *any), in the field's type."""
    return (matrix.to(field) @ field.flatten(1)).view(matrix.shape[0], *field.shape[1:])


def _squared_norm(vectors: Tensor) -> Tensor:
    """Over the channels, (n, *any) -> (*any); torch's norm over a short leading axis is ten times slower."""
    return vectors.square().sum(0)


def _half(grid: Geometry) -> Geometry:
    """Every second voxel of a grid, and one more where its end would otherwise lie outside."""
    affine = grid.affine.copy()
    affine[:-1, :-1] *= 2
    return Geometry(tuple(n // 2 + 1 if n > 1 else 1 for n in grid.shape), affine)


def is_sheared(grid: Geometry) -> bool:
    """Whether a grid's axes are so far from orthogonal that ITK does not know such a grid."""
    return _shear(grid) > ITK_SHEAR_TOLERANCE


def _shear(grid: Geometry) -> float:
    """How far the grid's axes are from being orthogonal: the largest cosine between two of them."""
    return float(np.abs(grid.direction.T @ grid.direction - np.eye(grid.ndim)).max())


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
