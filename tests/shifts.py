"""Pairs whose answer is a shift."""

from __future__ import annotations

import torch

from neuralreg import kernels
from neuralreg.pair import Pair


def texture(grid: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """(1, 1, *grid) in [0, 1], smooth over about four voxels."""
    coarse = torch.rand(1, 1, *[n // 4 + 2 for n in grid], generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(
        coarse, size=grid, mode="bilinear" if len(grid) == 2 else "trilinear", align_corners=True
    )


def shifted(grid: tuple[int, ...], shift: float = 1.5) -> tuple[Pair, torch.Tensor]:
    """A pair whose fixed image is the moving image moved by ``shift`` voxels along the first axis."""
    moving = texture(grid)
    truth = torch.zeros(1, len(grid), *grid)
    truth[:, 0] = shift
    fixed = kernels.warp(moving, truth, padding_mode="border")
    return Pair(fixed, moving, torch.eye(len(grid), len(grid) + 1)), truth[0]


def inner(field: torch.Tensor) -> torch.Tensor:
    return field[(slice(None), *[slice(4, -4)] * (field.ndim - 1))]
