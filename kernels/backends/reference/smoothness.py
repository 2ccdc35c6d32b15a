"""Mean squared first and second differences of dense fields, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def diffusion_loss(displacement: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Mean squared forward difference, averaged over the axes (VoxelMorph's Grad with penalty l2).

    displacement (B, C, *spatial); for axis k the mean over batch, channels and its N_k - 1 differences of
    ((u[i+1] - u[i]) / spacing_k)^2; an axis of size 1 contributes 0. Half inputs give a float32 scalar.
    """
    u = displacement.to(torch.promote_types(displacement.dtype, torch.float32))
    ndim = u.ndim - 2
    steps = (1.0,) * ndim if spacing is None else spacing
    differences = [u.diff(dim=axis + 2) / steps[axis] for axis in range(ndim)]
    means = [d.square().sum() / max(d.numel(), 1) for d in differences]
    return torch.stack(means).mean()


def bending_loss(displacement: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Mean squared second differences, summed over all pairs of axes, so that mixed ones count twice.

    displacement (B, C, *spatial); along axis k (u[i+1] - 2 u[i] + u[i-1]) / spacing_k^2, for two axes the forward
    difference along both, over both spacings; where an axis is too short 0. Half inputs give a float32 scalar.
    """
    u = displacement.to(torch.promote_types(displacement.dtype, torch.float32))
    ndim = u.ndim - 2
    steps = (1.0,) * ndim if spacing is None else spacing
    total = u.new_zeros(())
    for k in range(ndim):
        for m in range(ndim):
            d = u.diff(dim=k + 2).diff(dim=m + 2) / (steps[k] * steps[m])
            total = total + d.square().sum() / max(d.numel(), 1)
    return total
