"""Normalised mutual information of two images' intensities: it asks that one can be told from the other, no more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BINS = 32
EPS = 1e-10  # of a probability inside a logarithm, and where there is no entropy at all
HAT_TAPS, CUBIC_TAPS = 2, 4


def nmi(fixed: Tensor, warped: Tensor, mask: Tensor | None = None, bins: int = BINS) -> Tensor:
    """Normalised mutual information (H(f) + H(w)) / H(f, w): 1 for independent images, at most 2.

    Studholme, Hill and Hawkes 1999, from a joint histogram with Parzen windows as in Mattes et al. 2003: a value of the
    warped image is spread over four bins by a cubic B-spline, one of the fixed image over two by a linear one. All
    values count alike, wherever they lie: points need no neighbours, and items of a batch share one histogram. The
    windows blur the relation, so that an image with itself gives about 1.5.

    Args:
        fixed, warped: of one shape, in [0, 1]; values beyond are clipped and have no gradient.
        mask: weights that broadcast to the images; None counts all.
        bins: of either image, at least 4.

    Returns:
        A scalar, differentiable once in both images. 1 where one of them is constant or the mask is nowhere.

    Memory beyond the inputs until the backward pass: none; while it runs about fifteen volumes.
    """
    if bins < CUBIC_TAPS:
        raise ValueError(f"nmi: bins must be at least {CUBIC_TAPS}, got {bins}")
    wide = torch.promote_types(fixed.dtype, torch.float32)
    a, b = fixed.to(wide).flatten(), warped.to(wide).flatten()
    weight = torch.ones_like(a) if mask is None else mask.to(wide).expand_as(fixed).flatten()
    joint: Tensor = JointHistogram.apply(a, b, weight, bins)  # type: ignore[no-untyped-call]
    joint = joint / joint.detach().sum().clamp(min=EPS)
    one, other, both = (entropy(p) for p in (joint.sum(1), joint.sum(0), joint))
    return ((one + other + EPS) / (both + EPS)).to(wide)


def entropy(p: Tensor) -> Tensor:
    """-sum p log p, with a finite derivative at 0."""
    return -(p * (p + EPS).log()).sum()


class JointHistogram(torch.autograd.Function):
    """(bins, bins) float64: the weights of values (N,) spread over bins of both images, fixed along the rows."""

    @staticmethod
    def forward(ctx: Any, fixed: Tensor, warped: Tensor, weight: Tensor, bins: int) -> Tensor:
        ctx.save_for_backward(fixed, warped, weight)
        ctx.bins = bins
        row, rows, _ = hats(fixed, bins)
        column, columns, _ = cubics(warped, bins)
        first = row * bins + column
        joint = torch.zeros(bins * bins, dtype=torch.float64, device=fixed.device)
        for i in range(HAT_TAPS):
            share = rows[i] * weight
            for k in range(CUBIC_TAPS):
                joint.index_add_(0, first + (i * bins + k), (share * columns[k]).double())
        return joint.view(bins, bins)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        fixed, warped, weight = ctx.saved_tensors
        bins: int = ctx.bins
        row, rows, row_slopes = hats(fixed, bins)
        column, columns, column_slopes = cubics(warped, bins)
        first = row * bins + column
        flat = grad.reshape(-1).to(fixed.dtype)
        to_fixed = torch.zeros_like(fixed) if ctx.needs_input_grad[0] else None
        to_warped = torch.zeros_like(warped) if ctx.needs_input_grad[1] else None
        for i in range(HAT_TAPS):
            for k in range(CUBIC_TAPS):
                read = flat[first + (i * bins + k)]
                if to_fixed is not None:
                    to_fixed.addcmul_(read, row_slopes[i] * columns[k])
                if to_warped is not None:
                    to_warped.addcmul_(read, rows[i] * column_slopes[k])
        for gradient in (to_fixed, to_warped):
            if gradient is not None:
                gradient.mul_(weight)
        return to_fixed, to_warped, None, None


def hats(values: Tensor, bins: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """First bin (N,) of the two that a value in [0, 1] falls between, its shares of them, and their derivatives."""
    span = bins - 1
    first, t, slope = _cells(values, span)
    return first, [1 - t, t], [-slope, slope]


def cubics(values: Tensor, bins: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The same for the four bins under a cubic B-spline, which needs one bin beyond either end of the range."""
    span = bins - 3
    first, t, slope = _cells(values, span)
    back = 1 - t
    weights = [
        back * back * back / 6,
        (t * t * (3 * t - 6) + 4) / 6,
        (back * back * (3 * back - 6) + 4) / 6,
        t * t * t / 6,
    ]
    slopes = [
        -back * back / 2 * slope,
        t * (3 * t - 4) / 2 * slope,
        -back * (3 * back - 4) / 2 * slope,
        t * t / 2 * slope,
    ]
    return first, weights, slopes


def _cells(values: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cell (N,) of ``cells`` equal ones in [0, 1], the place in it, and its derivative, 0 beyond the range."""
    position = values.clamp(0, 1) * cells
    cell = position.floor().clamp(max=cells - 1)
    slope = cells * ((values >= 0) & (values <= 1)).to(values.dtype)
    return cell.long(), position - cell, slope
