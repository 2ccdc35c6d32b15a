"""Where an iteration looks: the points of the fixed grid that a field is asked at.

A sampler draws; what it draws is a :class:`Lattice` (regular parts of the grid, whose points have neighbours) or
:class:`Points` (scattered ones, which have none). Both give the field's coordinates, read the fixed image, and read the
moving image where the field's values point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralreg import kernels


def axis_coordinates(index: Tensor, size: int) -> Tensor:
    """Voxel positions on an axis of ``size`` voxels as field coordinates: [-1, 1] at the outer centres."""
    return index * (2.0 / (size - 1)) - 1.0 if size > 1 else torch.zeros_like(index)


def lattice_coordinates(axes: list[Tensor]) -> Tensor:
    """(N, ndim) coordinates of the lattice that the axes span, last axis fastest."""
    return torch.stack(torch.meshgrid(axes, indexing="ij"), -1).reshape(-1, len(axes))


@dataclass(frozen=True)
class Lattice:
    """P regular parts of the fixed grid, shrunk ``scale`` times: voxels ``offset + stride * l`` for lattice index l.

    Voxel v of the shrunken grid is the mean of a block of voxels, centred at voxel ``scale * v + (scale - 1) / 2``.
    With ``jitter`` every point is moved on its own, so that differences between neighbours say nothing about the
    map's derivative: the lattice is not ``regular``.
    """

    shape: tuple[int, ...]  # of the lattice
    grid: tuple[int, ...]  # of the fixed image at full size
    scale: int
    stride: int
    offset: Tensor  # (P, ndim) voxels of the shrunken grid, on the device
    jitter: Tensor | None = None  # (P, ndim, *shape) voxels of the shrunken grid

    @property
    def regular(self) -> bool:
        """Whether neighbouring points are exactly one step apart."""
        return self.jitter is None

    def voxels(self, part: int = 0) -> list[Tensor]:
        """Voxels of the shrunken grid along every axis of one part, without the jitter."""
        offset = self.offset[part]
        steps = [torch.arange(n, device=offset.device, dtype=offset.dtype) for n in self.shape]
        return [offset[k] + self.stride * step for k, step in enumerate(steps)]

    def coordinates(self) -> Tensor:
        """(P * points, ndim) field coordinates of the lattice points."""
        if self.jitter is not None:
            return _coordinates(self._positions(), self.grid, self.scale)
        centre = (self.scale - 1) / 2
        parts = []
        for part in range(len(self.offset)):
            axes = [
                axis_coordinates(self.scale * voxels + centre, size).float()
                for voxels, size in zip(self.voxels(part), self.grid, strict=True)
            ]
            parts.append(lattice_coordinates(axes))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _positions(self) -> Tensor:
        """(P * points, ndim) voxels of the shrunken grid, jitter included."""
        assert self.jitter is not None
        regular = torch.stack([lattice_coordinates(self.voxels(p)) for p in range(len(self.offset))])
        return (regular + self.jitter.flatten(2).transpose(1, 2)).reshape(-1, len(self.shape))

    def pick(self, image: Tensor) -> Tensor:
        """The values (P, C, *shape) of a shrunken image (1, C, *spatial) at the points; linear between voxels."""
        if self.jitter is not None:
            eye = torch.eye(len(self.shape), len(self.shape) + 1, device=image.device, dtype=image.dtype)
            expanded = image.expand(len(self.offset), *image.shape[1:])
            moved = (self.jitter / self.stride).to(image.dtype)
            return kernels.warp(expanded, moved, self.affine(eye), padding_mode="border")
        parts = []
        for part in range(len(self.offset)):
            picked = image
            for axis, voxels in enumerate(self.voxels(part)):
                picked = picked.index_select(2 + axis, voxels)
            parts.append(picked)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def displacement(self, values: Tensor) -> Tensor:
        """A field's values (P * points, ndim), in coordinates, as (P, ndim, *shape) in lattice steps."""
        ndim = len(self.shape)
        step = self.scale * self.stride
        half = values.new_tensor([(size - 1) / (2 * step) for size in self.grid])
        parts = len(self.offset)
        if parts == 1:
            return (values * half).T.reshape(1, ndim, *self.shape)
        return (values * half).view(parts, -1, ndim).transpose(1, 2).reshape(parts, ndim, *self.shape)

    def affine(self, voxel_affine: Tensor) -> Tensor:
        """(P, ndim, ndim + 1): lattice index to moving voxel, given that of shrunken voxels (ndim, ndim + 1)."""
        linear, shift = voxel_affine[:, :-1], voxel_affine[:, -1]
        moved = self.offset.to(linear.dtype) @ linear.T + shift
        return torch.cat([(linear * self.stride).expand(len(moved), -1, -1), moved[:, :, None]], 2)

    def warp(
        self, image: Tensor, displacement: Tensor, voxel_affine: Tensor, mode: str = "bilinear"
    ) -> Tensor:
        """A shrunken moving image (1, C, *spatial) at the displaced points: (P, C, *shape)."""
        if self.jitter is not None:
            displacement = displacement + self.jitter / self.stride
        expanded = image.expand(len(self.offset), *image.shape[1:])
        return kernels.warp(expanded, displacement, self.affine(voxel_affine), mode=mode)


@dataclass(frozen=True)
class Points:
    """Scattered voxels of the fixed grid, shrunk ``scale`` times as for :class:`Lattice`."""

    grid: tuple[int, ...]
    scale: int
    voxels: Tensor  # (N, ndim) of the shrunken grid, floating point, on the device

    regular = False

    def coordinates(self) -> Tensor:
        """(N, ndim) field coordinates."""
        return _coordinates(self.voxels, self.grid, self.scale)

    def pick(self, image: Tensor) -> Tensor:
        """The values (1, C, N, 1 ..) of a shrunken image (1, C, *spatial) at the points."""
        return self._read(image, self.voxels, "bilinear")

    def displacement(self, values: Tensor) -> Tensor:
        """A field's values (N, ndim), in coordinates, in voxels of the shrunken grid."""
        return values * values.new_tensor([(size - 1) / (2 * self.scale) for size in self.grid])

    def warp(
        self, image: Tensor, displacement: Tensor, voxel_affine: Tensor, mode: str = "bilinear"
    ) -> Tensor:
        """A shrunken moving image (1, C, *spatial) at the displaced points: (1, C, N, 1 ..)."""
        moved = self.voxels + displacement
        return self._read(image, moved @ voxel_affine[:, :-1].T + voxel_affine[:, -1], mode)

    def _read(self, image: Tensor, voxels: Tensor, mode: str) -> Tensor:
        ndim = voxels.shape[1]
        # without corners aligned an axis of one voxel has an extent too
        size = voxels.new_tensor(image.shape[2:])
        grid = ((2 * voxels + 1) / size - 1).flip(1).view(1, -1, *[1] * (ndim - 1), ndim)
        return kernels.grid_sample(image, grid, mode=mode, align_corners=False)


Sample = Lattice | Points


def _coordinates(voxels: Tensor, grid: tuple[int, ...], scale: int) -> Tensor:
    """Field coordinates of voxels (N, ndim) of the shrunken grid."""
    full = scale * voxels + (scale - 1) / 2
    return torch.stack([axis_coordinates(full[:, k], size) for k, size in enumerate(grid)], 1).float()


class Sampler:
    """Draws samples of the fixed grid, shrunk ``scale`` times. ``shape`` is that of a lattice that it draws, if any."""

    def __init__(
        self, grid: tuple[int, ...], generator: torch.Generator, device: torch.device, scale: int = 1
    ) -> None:
        self.grid, self.scale = grid, scale
        self.shrunken = shrunken_grid(grid, scale)
        self.generator, self.device = generator, device
        self.shape: tuple[int, ...] | None = None

    def draw(self) -> Sample:
        """The next sample."""
        raise NotImplementedError

    def _integers(self, high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=self.generator)


class Downsize(Sampler):
    """NIR's downsize sampler: every ``stride``-th voxel, one random offset an iteration shared by all points.

    The lattice has floor(N / scale / stride) points an axis (at least one) for every offset, so shapes never change.
    ``jitter`` says what is random: "shared", the offset of all points (NIR's downsize_unified_random); "none", the
    lattice lies centred (downsize_center); "voxels" or "anywhere", the place of every point in its own cell of
    ``stride`` voxels an axis, whole voxels or continuous (downsize_random, downsize_random_syn).
    """

    JITTERS = ("shared", "none", "voxels", "anywhere")

    def __init__(
        self,
        grid: tuple[int, ...],
        stride: int,
        generator: torch.Generator,
        device: torch.device,
        scale: int = 1,
        jitter: str = "shared",
    ) -> None:
        super().__init__(grid, generator, device, scale)
        if jitter not in self.JITTERS:
            raise ValueError(f"jitter must be one of {', '.join(self.JITTERS)}, got {jitter!r}")
        self.stride, self.jitter = stride, jitter
        self.shape: tuple[int, ...] = lattice_shape(self.shrunken, stride)

    def draw(self) -> Lattice:
        reach = [min(self.stride, n) for n in self.shrunken]
        if self.jitter == "shared":
            offset = torch.cat([self._integers(r, 1) for r in reach])[None]
        elif self.jitter == "none":
            span = [n - 1 - self.stride * (m - 1) for n, m in zip(self.shrunken, self.shape, strict=True)]
            offset = torch.tensor([[s // 2 for s in span]])
        else:
            offset = torch.zeros(1, len(self.grid), dtype=torch.int64)
        jitter = self._jitter(reach) if self.jitter in ("voxels", "anywhere") else None
        return Lattice(self.shape, self.grid, self.scale, self.stride, offset.to(self.device), jitter)

    def _jitter(self, reach: list[int]) -> Tensor:
        drawn = torch.rand(1, len(reach), *self.shape, generator=self.generator)
        cells = torch.tensor(reach, dtype=torch.float32).view(1, -1, *[1] * len(reach))
        moved = drawn * cells
        if self.jitter == "voxels":
            moved = torch.minimum(moved.floor(), cells - 1)
        else:  # the last cell may end half a voxel beyond the last centre
            ends = [n - 1 - self.stride * (m - 1) for n, m in zip(self.shrunken, self.shape, strict=True)]
            for axis, end in enumerate(ends):
                moved[:, axis].narrow(axis + 1, self.shape[axis] - 1, 1).clamp_(max=end)
        return moved.to(self.device)


class Patches(Sampler):
    """NIR's mini-patch sampler: ``count`` cubes of ``side`` voxels (less where the grid is smaller) anywhere."""

    def __init__(
        self,
        grid: tuple[int, ...],
        count: int,
        side: int,
        generator: torch.Generator,
        device: torch.device,
        scale: int = 1,
    ) -> None:
        super().__init__(grid, generator, device, scale)
        self.count = count
        self.shape: tuple[int, ...] = tuple(min(side, n) for n in self.shrunken)

    def draw(self) -> Lattice:
        room = [n - m + 1 for n, m in zip(self.shrunken, self.shape, strict=True)]
        offset = torch.stack([self._integers(r, self.count) for r in room], 1)
        return Lattice(self.shape, self.grid, self.scale, 1, offset.to(self.device))


class RandomPoints(Sampler):
    """``count`` voxels anywhere (all where there are fewer), each at most once an iteration (NIR's random sampler)."""

    def __init__(
        self,
        grid: tuple[int, ...],
        count: int,
        generator: torch.Generator,
        device: torch.device,
        scale: int = 1,
    ) -> None:
        super().__init__(grid, generator, device, scale)
        self.voxels = math.prod(self.shrunken)
        self.count = min(count, self.voxels)

    def draw(self) -> Points:
        # One voxel of each of ``count`` equal runs: distinct, spread evenly, and no permutation of the volume is made.
        edges = torch.arange(self.count + 1) * self.voxels // self.count
        length = edges[1:] - edges[:-1]
        inside = (torch.rand(self.count, generator=self.generator, dtype=torch.float64) * length).long()
        flat = edges[:-1] + torch.minimum(inside, length - 1)
        voxels = torch.stack(torch.unravel_index(flat, self.shrunken), 1)
        return Points(self.grid, self.scale, voxels.float().to(self.device))


def shrunken_grid(grid: tuple[int, ...], scale: int) -> tuple[int, ...]:
    """Shape of a grid whose voxels are means of ``scale`` voxels an axis."""
    return tuple(max(1, n // scale) for n in grid)


def lattice_shape(grid: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """Points an axis that a stride leaves, whatever the offset."""
    return tuple(max(1, n // stride) for n in grid)


def smallest_stride(grid: tuple[int, ...], max_points: int) -> int:
    """The smallest stride whose lattice has at most ``max_points`` points."""
    stride = 1
    while math.prod(lattice_shape(grid, stride)) > max_points:
        stride += 1
    return stride
