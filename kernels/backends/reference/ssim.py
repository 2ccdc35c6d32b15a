"""Structural similarity in Gaussian windows, in plain torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def ssim(
    fixed: Tensor,
    warped: Tensor,
    weights: Sequence[Sequence[float]],
    c1: float,
    c2: float,
    padding: str = "same",
    reduction: str = "mean",
    recompute: bool | None = None,
) -> Tensor:
    """Structural similarity of two images (B, C, *spatial) with separable windows; larger is more alike.

    ``weights`` hold the window along every axis. With E the weighted sum over a window, m_f = E f, m_w = E w,
    v_f = E ff - m_f^2, v_w = E ww - m_w^2 and c = E fw - m_f m_w:

        value = (2 m_f m_w + c1) (2 c + c2) / ((m_f^2 + m_w^2 + c1) (v_f + v_w + c2))

    Computed in float64. Returns the mean (float32 for half inputs), or with reduction "none" the map in the
    inputs' dtype. Moments live until the backward pass; with ``recompute=True`` they are computed again.
    """
    if recompute:
        once = functools.partial(ssim, weights=weights, c1=c1, c2=c2, padding=padding, reduction=reduction)
        return checkpoint(once, fixed, warped, use_reentrant=False)
    dtype = torch.promote_types(fixed.dtype, warped.dtype)
    f, w = fixed.double(), warped.double()
    moments = torch.stack([f, w, f * f, w * w, f * w])
    for axis, line in zip(range(-len(weights), 0), weights, strict=True):
        moments = _weighted_sum(moments, axis, line, padding)
    mf, mw, mff, mww, mfw = moments.unbind()
    c, v = mfw - mf * mw, mff - mf * mf + mww - mw * mw
    values = (2 * mf * mw + c1) * (2 * c + c2) / ((mf * mf + mw * mw + c1) * (v + c2))
    if reduction == "none":
        return values.to(dtype)
    mean = values.sum() / max(1, values.numel())
    return mean.to(torch.promote_types(dtype, torch.float32))


def _weighted_sum(x: Tensor, axis: int, line: Sequence[float], padding: str) -> Tensor:
    """Windows of ``line`` along one axis: output i reads i - (n - 1) // 2 ... i + n // 2, zeros outside."""
    if padding == "same":
        x = F.pad(x, [0, 0] * (-axis - 1) + [(len(line) - 1) // 2, len(line) // 2])
    length = x.shape[axis] - len(line) + 1
    total = torch.zeros_like(x.narrow(axis, 0, length))
    for tap, weight in enumerate(line):
        total = total + weight * x.narrow(axis, tap, length)
    return total
