"""What a method sees of two images: tensors, masks and one affine between voxel grids. No header, no millimetre.

A fit asks no more of a pair than :class:`Images` and :class:`Shown` have, so that one of which every process holds a
part is fitted as a whole one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from neuralreg import kernels
from neuralreg.losses import Mean, mean_over
from neuralreg.samplers import Sample


class Shown(Protocol):
    """A pair at one scale."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Spatial shape of the fixed image."""

    @property
    def device(self) -> torch.device: ...

    def part(self, sample: Sample) -> tuple[Sample, Mean]:
        """The points of a sample that this process asks a field at, and what takes means over the whole sample."""

    def held(self, sample: Sample, displacement: Tensor) -> tuple[Pair, Sample]:
        """The images in which a part of a sample and the same displaced can be read, and that part in their voxels.

        ``displacement`` is in the sample's steps.
        """


class Images(Protocol):
    """A pair at full size."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Spatial shape of the fixed image."""

    @property
    def ndim(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def shrink(self, factor: int) -> Shown:
        """The pair with every ``factor`` voxels of an axis averaged into one."""

    def gather(self, parameters: Sequence[Tensor]) -> None:
        """Completes the gradients of parameters, of which other processes may have parts."""


@dataclass(frozen=True)
class Pair:
    """Two scaled images (1, 1, *spatial) in [0, 1] and the affine (ndim, ndim + 1) from fixed to moving voxels.

    Masks, where given, are (1, 1, *spatial) of 0 and 1 on the grid of their image.
    """

    fixed: Tensor
    moving: Tensor
    voxel_affine: Tensor
    fixed_mask: Tensor | None = None
    moving_mask: Tensor | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Spatial shape of the fixed image."""
        return tuple(self.fixed.shape[2:])

    @property
    def ndim(self) -> int:
        return len(self.grid)

    @property
    def device(self) -> torch.device:
        return self.fixed.device

    def shrink(self, factor: int) -> Pair:
        """The pair with every ``factor`` voxels of an axis averaged into one, left-over voxels at the end dropped.

        A mask keeps the blocks that it covers at least by half. An axis shorter than ``factor`` becomes one voxel.
        """
        if factor == 1:
            return self
        fixed, moving = block_means(self.fixed, factor), block_means(self.moving, factor)
        # Block v is centred at voxel factors * v + (factors - 1) / 2 of its image.
        affine = self.voxel_affine.double()
        linear, shift = affine[:, :-1], affine[:, -1]
        a, b = (affine.new_tensor([min(factor, n) for n in x.shape[2:]]) for x in (self.fixed, self.moving))
        shift = (linear @ ((a - 1) / 2) + shift - (b - 1) / 2) / b
        voxel_affine = torch.cat([linear * a / b[:, None], shift[:, None]], 1).to(self.voxel_affine)
        masks = [
            None if mask is None else (block_means(mask, factor) >= 0.5).to(mask)
            for mask in (self.fixed_mask, self.moving_mask)
        ]
        return Pair(fixed, moving, voxel_affine, *masks)

    def part(self, sample: Sample) -> tuple[Sample, Mean]:
        """All of the sample."""
        return sample, mean_over

    def held(self, sample: Sample, displacement: Tensor) -> tuple[Pair, Sample]:
        """This pair, which has all voxels."""
        return self, sample

    def gather(self, parameters: Sequence[Tensor]) -> None:
        """Nothing: the gradients are whole."""

    def on_fixed_grid(self) -> Pair:
        """The pair with the moving image and its mask read at the fixed voxels through the affine."""
        same = torch.eye(self.ndim, self.ndim + 1, device=self.fixed.device)
        if self.moving.shape == self.fixed.shape and torch.equal(self.voxel_affine, same):
            return self
        nowhere = self.fixed.new_zeros(1, self.ndim, *self.grid)
        affine = self.voxel_affine[None]
        mask = self.moving_mask
        if mask is not None:
            mask = kernels.warp(mask, nowhere, affine, mode="nearest")
        return Pair(self.fixed, kernels.warp(self.moving, nowhere, affine), same, self.fixed_mask, mask)


def resampled(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An image (1, 1, *spatial) resampled linearly to a shape, corners aligned; averaged first where far larger."""
    factor = max(1, min(n // m for n, m in zip(image.shape[2:], shape, strict=True)))
    if factor > 1:
        image = block_means(image, factor)
    if tuple(image.shape[2:]) == tuple(shape):
        return image
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return functional.interpolate(image, size=tuple(shape), mode=mode, align_corners=True)


def block_means(image: Tensor, factor: int | Sequence[int]) -> Tensor:
    """Means of blocks of (1, 1, *spatial), ``factor`` voxels along all axes or each; a short axis becomes one voxel."""
    shape = image.shape[2:]
    factors = [factor] * len(shape) if isinstance(factor, int) else factor
    pool = functional.avg_pool2d if len(shape) == 2 else functional.avg_pool3d
    return pool(image, [min(f, n) for f, n in zip(factors, shape, strict=True)])
