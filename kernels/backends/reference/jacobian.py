"""Regularity of displacement fields by differences between lattice neighbours, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def jacobian_determinant(
    displacement: Tensor, spacing: Sequence[float] | None = None, scheme: str = "forward"
) -> Tensor:
    """det(I + J) with J[c, k] = d u_c / d x_k; displacement (B, ndim, *spatial) gives (B, *spatial).

    ``spacing`` is the distance between lattice points per axis, in the displacement's own units (default 1).
    Differences are "forward" u[i+1] - u[i], "backward" u[i] - u[i-1] or "central" (their mean); where a
    neighbour is missing the one-sided difference that exists is taken, and along an axis of size 1 the
    derivative is 0.
    """
    u = displacement.to(torch.promote_types(displacement.dtype, torch.float32))
    ndim = u.shape[1]
    steps = (1.0,) * ndim if spacing is None else spacing
    columns = [_derivative(u, axis + 2, scheme) / steps[axis] for axis in range(ndim)]
    a = [[columns[k][:, c] + float(c == k) for k in range(ndim)] for c in range(ndim)]
    if ndim == 2:
        determinant = a[0][0] * a[1][1] - a[0][1] * a[1][0]
    else:
        determinant = (
            a[0][0] * (a[1][1] * a[2][2] - a[1][2] * a[2][1])
            - a[0][1] * (a[1][0] * a[2][2] - a[1][2] * a[2][0])
            + a[0][2] * (a[1][0] * a[2][1] - a[1][1] * a[2][0])
        )
    return determinant.to(displacement.dtype)


def jacobian_loss(
    displacement: Tensor,
    spacing: Sequence[float] | None = None,
    scheme: str = "forward",
    penalty: str = "relu",
    threshold: float = 0.0,
) -> Tensor:
    """Mean of relu(threshold - det) ("relu") or of |det - 1| ("unit") over all lattice points.

    Arguments as in ``jacobian_determinant``; half inputs give a float32 scalar, an empty batch gives 0.
    """
    wide = displacement.to(torch.promote_types(displacement.dtype, torch.float32))
    determinant = jacobian_determinant(wide, spacing, scheme)
    values = (threshold - determinant).relu() if penalty == "relu" else (determinant - 1).abs()
    return values.sum() / max(values.numel(), 1)


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


def _derivative(u: Tensor, axis: int, scheme: str) -> Tensor:
    """Differences along one axis, full size, in lattice units."""
    if u.shape[axis] == 1:
        return u.diff(dim=axis).sum(axis, keepdim=True)  # zeros that stay in the graph
    inner = u.diff(dim=axis)
    last = u.shape[axis] - 2
    forward = torch.cat([inner, inner.narrow(axis, last, 1)], axis)
    backward = torch.cat([inner.narrow(axis, 0, 1), inner], axis)
    if scheme == "central":
        return (forward + backward) / 2
    return forward if scheme == "forward" else backward
