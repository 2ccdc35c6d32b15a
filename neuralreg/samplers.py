"""Where an iteration looks: coordinates of the fixed grid that a field is asked at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def axis_coordinates(index: Tensor, size: int) -> Tensor:
    """Voxel positions on an axis of ``size`` voxels as field coordinates: [-1, 1] at the outer centres."""
    return index * (2.0 / (size - 1)) - 1.0 if size > 1 else torch.zeros_like(index)


def lattice_coordinates(axes: list[Tensor]) -> Tensor:
    """(N, ndim) coordinates of the lattice that the axes span, last axis fastest."""
    return torch.stack(torch.meshgrid(axes, indexing="ij"), -1).reshape(-1, len(axes))


@dataclass(frozen=True)
class Lattice:
    """A regular part of the fixed grid, shrunk ``scale`` times: its voxel ``offset + stride * l`` for lattice index l.

    Voxel v of the shrunken grid is the mean of a block of voxels, centred at voxel ``scale * v + (scale - 1) / 2``.
    """

    shape: tuple[int, ...]  # of the lattice
    grid: tuple[int, ...]  # of the fixed image at full size
    scale: int
    stride: int
    offset: Tensor  # (ndim,) voxels of the shrunken grid, on the device

    def voxels(self) -> list[Tensor]:
        """Voxels of the shrunken grid along every axis."""
        steps = [torch.arange(n, device=self.offset.device, dtype=self.offset.dtype) for n in self.shape]
        return [self.offset[k] + self.stride * step for k, step in enumerate(steps)]

    def coordinates(self) -> Tensor:
        """(N, ndim) field coordinates of the lattice points."""
        centre = (self.scale - 1) / 2
        axes = [
            axis_coordinates(self.scale * voxels + centre, size).float()
            for voxels, size in zip(self.voxels(), self.grid, strict=True)
        ]
        return lattice_coordinates(axes)

    def pick(self, image: Tensor) -> Tensor:
        """The values of a shrunken image (B, C, *spatial) at the lattice points."""
        for axis, voxels in enumerate(self.voxels()):
            image = image.index_select(2 + axis, voxels)
        return image

    def displacement(self, values: Tensor) -> Tensor:
        """A field's values (N, ndim), in coordinates, as a (1, ndim, *shape) displacement in lattice steps."""
        ndim = len(self.shape)
        step = self.scale * self.stride
        half = values.new_tensor([(size - 1) / (2 * step) for size in self.grid])
        return (values * half).T.reshape(1, ndim, *self.shape)

    def affine(self, voxel_affine: Tensor) -> Tensor:
        """(1, ndim, ndim + 1): lattice index to moving voxel, given that of shrunken voxels (ndim, ndim + 1)."""
        linear, shift = voxel_affine[:, :-1], voxel_affine[:, -1]
        moved = linear @ self.offset.to(linear.dtype) + shift
        return torch.cat([linear * self.stride, moved[:, None]], 1)[None]


class Downsize:
    """NIR's downsize sampler: every ``stride``-th voxel, one random offset an iteration shared by all points.

    It draws from the fixed grid shrunk ``scale`` times. The lattice has floor(N / scale / stride) points an axis (at
    least one) for every offset, so shapes never change.
    """

    def __init__(
        self,
        grid: tuple[int, ...],
        stride: int,
        generator: torch.Generator,
        device: torch.device,
        scale: int = 1,
    ) -> None:
        self.grid, self.stride, self.scale = grid, stride, scale
        self.shrunken = shrunken_grid(grid, scale)
        self.shape = lattice_shape(self.shrunken, stride)
        self.generator, self.device = generator, device

    def draw(self) -> Lattice:
        """The next lattice."""
        reach = [min(self.stride, n) for n in self.shrunken]
        offset = [torch.randint(r, (1,), generator=self.generator) for r in reach]
        return Lattice(self.shape, self.grid, self.scale, self.stride, torch.cat(offset).to(self.device))


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
