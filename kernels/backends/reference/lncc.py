"""Local normalised cross-correlation by cumulative sums, in plain torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def lncc(
    fixed: Tensor,
    warped: Tensor,
    window: int | Sequence[int] = 9,
    *,
    padding: str = "same",
    mask: Tensor | None = None,
    squared: bool = True,
    eps: float = 1e-5,
    eps_mode: str = "product",
    numerator_eps: float = 0.0,
    flat_tol: float = 1e-6,
    zero_rule: bool = False,
    reduction: str = "mean",
    recompute: bool | None = None,
) -> Tensor:
    """Local normalised cross-correlation of two images (B, C, *spatial) in box windows; larger is more alike.

    With the window's sums Sf, Sw, Sff, Sww, Sfw and its number of voxels n (zero padding counts, or with a
    mask the mask's voxels only):

        c = Sfw - Sf Sw / n        v_f = Sff - Sf^2 / n        v_w = Sww - Sw^2 / n
        value = (c^2 + numerator_eps) / d        or, not squared, (c + numerator_eps) / sqrt(d)
        product: d = v_f v_w + eps                              (VoxelMorph)
        clamp:   d = max(v_f, eps) max(v_w, eps)                (MONAI)
        each:    d = (v_f + eps) (v_w + eps), c, v_f, v_w divided by n, variances clipped at 0  (ICON)

    A window is flat when v_f <= flat_tol Sff or v_w <= flat_tol Sww or n < 2: it counts 0 and has no
    gradient, and stays in the mean's denominator. Windows whose centre is outside the mask, and with
    ``zero_rule`` those with Sf <= 0 or Sw <= 0, leave the mean and are 0 in the map.

    Sums are cumulative sums in float64: cost independent of the window, and no cancellation at large offsets.
    Returns the mean (float32 for half inputs), or with reduction "none" the map (B, C, *out) in the inputs'
    dtype. About thirteen float64 volumes live until the backward pass; with ``recompute=True`` none, at the
    price of a second forward pass.
    """
    if recompute:
        once = functools.partial(
            lncc,
            window=window,
            padding=padding,
            mask=mask,
            squared=squared,
            eps=eps,
            eps_mode=eps_mode,
            numerator_eps=numerator_eps,
            flat_tol=flat_tol,
            zero_rule=zero_rule,
            reduction=reduction,
        )
        return checkpoint(once, fixed, warped, use_reentrant=False)
    ndim = fixed.ndim - 2
    windows = (window,) * ndim if isinstance(window, int) else tuple(window)
    dtype = torch.promote_types(fixed.dtype, warped.dtype)
    f, w = fixed.double(), warped.double()
    if mask is not None:
        inside = (mask != 0).expand_as(f)
        f, w = torch.where(inside, f, 0.0), torch.where(inside, w, 0.0)
    sums = _box_sum(torch.stack([f, w, f * f, w * w, f * w]), windows, padding)
    sf, sw, sff, sww, sfw = sums.unbind()

    counted = torch.ones_like(sf, dtype=torch.bool)
    n = torch.full_like(sf, float(math.prod(windows)))
    if mask is not None:
        n = _box_sum(inside.double(), windows, padding).round()
        counted = _centres(inside, windows, padding)
    if zero_rule:
        counted = counted & (sf > 0) & (sw > 0)
    few, n = n < 2, n.clamp(min=1)

    c, vf, vw = sfw - sf * sw / n, sff - sf * sf / n, sww - sw * sw / n
    flat = few | (vf <= flat_tol * sff) | (vw <= flat_tol * sww)
    used = counted & ~flat
    # Harmless numbers in, zero out: a window that does not count must not put 0 * inf into the gradient.
    c, vf, vw = torch.where(used, c, 0.0), torch.where(used, vf, 1.0), torch.where(used, vw, 1.0)
    if eps_mode == "product":
        denominator = vf * vw + eps
    elif eps_mode == "clamp":
        denominator = vf.clamp(min=eps) * vw.clamp(min=eps)
    else:
        c = c / n
        denominator = ((vf / n).relu() + eps) * ((vw / n).relu() + eps)
    ratio = (c * c + numerator_eps) / denominator if squared else (c + numerator_eps) / denominator.sqrt()
    values = torch.where(used, ratio, 0.0)
    if reduction == "none":
        return values.to(dtype)
    mean = values.sum() / counted.sum().clamp(min=1)
    return mean.to(torch.promote_types(dtype, torch.float32))


def _box_sum(x: Tensor, windows: tuple[int, ...], padding: str) -> Tensor:
    """Sums over boxes of the last axes: with P the prefix sum of the (padded) axis, P[i + w] - P[i]."""
    for axis, window in zip(range(-len(windows), 0), windows, strict=True):
        before, after = ((window - 1) // 2, window // 2) if padding == "same" else (0, 0)
        prefix = F.pad(x, [0, 0] * (-axis - 1) + [before + 1, after]).cumsum(axis)
        length = prefix.shape[axis] - window
        x = prefix.narrow(axis, window, length) - prefix.narrow(axis, 0, length)
    return x


def _centres(inside: Tensor, windows: tuple[int, ...], padding: str) -> Tensor:
    """Whether the centre voxel of every window is inside."""
    if padding == "valid":
        for axis, window in zip(range(-len(windows), 0), windows, strict=True):
            inside = inside.narrow(axis, (window - 1) // 2, inside.shape[axis] - window + 1)
    return inside
