"""Jacobian determinants of displacement fields and penalties on them, in plain torch."""

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
    return _determinant(a).to(displacement.dtype)


def jacobian_loss(
    displacement: Tensor,
    spacing: Sequence[float] | None = None,
    scheme: str = "forward",
    penalty: str = "relu",
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Mean of relu(threshold - det) ("relu") or of |det - 1| ("unit") over all lattice points; number of folds.

    Arguments as in ``jacobian_determinant``; half inputs give a float32 scalar, an empty batch gives 0.
    """
    wide = displacement.to(torch.promote_types(displacement.dtype, torch.float32))
    return _penalty(jacobian_determinant(wide, spacing, scheme), penalty, threshold)


def jacobian_penalty(
    jacobians: Tensor, penalty: str = "relu", threshold: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The same of det(I + J) for J (N, ndim, ndim)."""
    j = jacobians.to(torch.promote_types(jacobians.dtype, torch.float32))
    ndim = j.shape[-1]
    rows = [[j[:, c, k] + float(c == k) for k in range(ndim)] for c in range(ndim)]
    return _penalty(_determinant(rows), penalty, threshold)


def _penalty(determinant: Tensor, penalty: str, threshold: float) -> tuple[Tensor, Tensor]:
    values = (threshold - determinant).relu() if penalty == "relu" else (determinant - 1).abs()
    return values.sum() / max(values.numel(), 1), (determinant <= 0).sum()


def _determinant(a: list[list[Tensor]]) -> Tensor:
    """Of matrices given entry by entry."""
    if len(a) == 2:
        return a[0][0] * a[1][1] - a[0][1] * a[1][0]
    return (
        a[0][0] * (a[1][1] * a[2][2] - a[1][2] * a[2][1])
        - a[0][1] * (a[1][0] * a[2][2] - a[1][2] * a[2][0])
        + a[0][2] * (a[1][0] * a[2][1] - a[1][1] * a[2][0])
    )


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
