"""LNCC written window by window in numpy, straight from its definition, and what its tests share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.kernels import lncc

from .common import On, leaf

Array = np.ndarray


def windows_of(size: int, window: int, padding: str) -> list[tuple[int, int, int]]:
    """(first, end, centre) of every window along one axis, clipped to the axis."""
    before, after = (window - 1) // 2, window // 2
    if padding == "valid":
        return [(i, i + window, i + before) for i in range(size - window + 1)]
    return [(max(i - before, 0), min(i + after + 1, size), i) for i in range(size)]


def lncc_map(
    fixed: Array,
    warped: Array,
    window: int | Sequence[int],
    *,
    padding: str = "same",
    mask: Array | None = None,
    squared: bool = True,
    eps: float = 1e-5,
    eps_mode: str = "product",
    numerator_eps: float = 0.0,
    flat_tol: float = 1e-6,
    zero_rule: bool = False,
) -> tuple[Array, Array]:
    """Values (B, C, *out) and whether each window counts in the mean."""
    ndim = fixed.ndim - 2
    sizes = [window] * ndim if isinstance(window, int) else list(window)
    per_axis = [windows_of(n, w, padding) for n, w in zip(fixed.shape[2:], sizes, strict=True)]
    out = [len(axis) for axis in per_axis]
    values = np.zeros([*fixed.shape[:2], *out])
    counted = np.ones(values.shape, dtype=bool)
    for b, c in np.ndindex(*fixed.shape[:2]):
        inside = None if mask is None else mask[b, c if mask.shape[1] > 1 else 0] != 0
        for place in itertools.product(*[range(n) for n in out]):
            spans = [axis[i] for axis, i in zip(per_axis, place, strict=True)]
            box = tuple(slice(first, end) for first, end, _ in spans)
            f, w = fixed[b, c][box].ravel(), warped[b, c][box].ravel()
            n = float(np.prod(sizes))
            if inside is not None:
                f, w = f[inside[box].ravel()], w[inside[box].ravel()]
                n = float(f.size)
                counted[(b, c, *place)] = inside[tuple(centre for _, _, centre in spans)]
            if zero_rule and (f.sum() <= 0 or w.sum() <= 0):
                counted[(b, c, *place)] = False
            if not counted[(b, c, *place)] or n < 2:
                continue
            cross = (f * w).sum() - f.sum() * w.sum() / n
            var_f = (f * f).sum() - f.sum() ** 2 / n
            var_w = (w * w).sum() - w.sum() ** 2 / n
            if var_f <= flat_tol * (f * f).sum() or var_w <= flat_tol * (w * w).sum():
                continue
            if eps_mode == "product":
                denominator = var_f * var_w + eps
            elif eps_mode == "clamp":
                denominator = max(var_f, eps) * max(var_w, eps)
            else:
                cross /= n
                denominator = (var_f / n + eps) * (var_w / n + eps)
            if squared:
                values[(b, c, *place)] = (cross**2 + numerator_eps) / denominator
            else:
                values[(b, c, *place)] = (cross + numerator_eps) / np.sqrt(denominator)
    return values, counted


def pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two images in [0, 1] that are alike, but not too much."""
    fixed = torch.rand(shape, dtype=torch.float64)
    return fixed.to(dtype), (0.6 * fixed + 0.4 * torch.rand(shape, dtype=torch.float64)).to(dtype)


def gradients(
    on: On, fixed: Tensor, warped: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The value, and the gradients of its sum to both images."""
    f, w = leaf(fixed), leaf(warped)
    value = on(lncc, f, w, *args, **options)
    value.sum().backward()
    return value.detach(), f.grad, w.grad
