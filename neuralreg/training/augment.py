"""Random flips, permutations of axes and small affine maps, as NePhi's code offers them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from neuralreg import kernels
from neuralreg.training.data import Batch, seed_of


@dataclass(frozen=True)
class Augmentation:
    """Changes every pair by a draw that depends on (seed, step, place of the pair in the global batch) alone.

    Both images of a pair are flipped along the same axes (each with probability 1/2) and have their axes permuted in
    the same way, among those that leave the shape as it is. Then each is read at x + noise * (G x + g), with its own
    normal G and g, in coordinates of [-1, 1]; what lies outside is 0. Labels follow, by nearest neighbour. Allocates
    the batch and, for one pair at a time, a displacement of zeros.
    """

    noise: float = 0.05

    def __call__(self, batch: Batch, seed: int, step: int, places: list[int]) -> Batch:
        pairs = [
            self.pair(_part(batch, k), torch.Generator().manual_seed(seed_of(seed, step, "augment", place)))
            for k, place in enumerate(places)
        ]
        parts = [[getattr(pair, name) for pair in pairs] for name in vars(batch)]
        joined: list[Any] = [None if part[0] is None else torch.cat(part) for part in parts]
        return Batch(*joined)

    def pair(self, batch: Batch, generator: torch.Generator) -> Batch:
        """One pair, B = 1."""
        shape = tuple(batch.fixed.shape[2:])
        ndim = len(shape)
        orders = [o for o in permutations(range(ndim)) if tuple(shape[axis] for axis in o) == shape]
        order = orders[int(torch.randint(len(orders), (), generator=generator))]
        flips = torch.rand(ndim, generator=generator) < 0.5
        axes = [axis + 2 for axis in range(ndim) if flips[axis]]
        noise = self.noise * torch.randn(2, ndim, ndim + 1, generator=generator)
        affine = {
            side: to_voxels(torch.eye(ndim, ndim + 1) + noise[k], shape)
            for k, side in enumerate(("fixed", "moving"))
        }

        def changed(image: Any, side: str) -> Any:
            if image is None:
                return None
            turned = image.permute(0, 1, *(axis + 2 for axis in order)).flip(axes)
            still = torch.zeros(1, ndim, *shape, device=image.device)
            mode = "bilinear" if image.is_floating_point() else "nearest"
            return kernels.warp(turned, still, affine[side][None].to(image.device), mode)

        return Batch(*[changed(image, name.split("_")[0]) for name, image in vars(batch).items()])


def to_voxels(affine: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An affine (ndim, ndim + 1) of coordinates in [-1, 1] as one of voxel coordinates."""
    half = (torch.tensor(shape, dtype=torch.float32) - 1) / 2
    matrix = half[:, None] * affine[:, :-1] / half.clamp(min=0.5)
    return torch.cat([matrix, (half * affine[:, -1] + half - matrix @ half)[:, None]], 1)


def _part(batch: Batch, k: int) -> Batch:
    parts: list[Any] = [None if value is None else value[k : k + 1] for value in vars(batch).values()]
    return Batch(*parts)
