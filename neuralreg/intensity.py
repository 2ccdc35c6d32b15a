"""Intensities are brought to [0, 1] before any similarity sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.errors import InputError

if TYPE_CHECKING:
    from neuralreg.images import Image


def scale_intensity(
    image: Image | Tensor,
    *,
    window: tuple[float, float] | None = None,
    quantiles: tuple[float, float] = (0.0, 0.999),
    mask: Image | Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Map intensities linearly to [0, 1] and clip: y = clip((x - low) / (high - low), 0, 1).

    ``window`` = (low, high) in the image's own units (a CT window in HU); without it low and high are the
    ``quantiles`` of the voxels, of those inside ``mask`` (*sp, nonzero = inside) where one is given. Where
    the two quantiles coincide (a small object on an empty background) the range of the voxels is taken.

    Returns float32 (*sp) and what was applied: ``{"method", "low", "high", ...}``. Allocates one volume, and
    one more while quantiles are found.
    """
    data = image.data.detach()  # of an Image and of a tensor alike
    applied: dict[str, Any]
    if window is not None:
        low, high = float(window[0]), float(window[1])
        if not (np.isfinite([low, high]).all() and low < high):
            raise InputError(f"window {low:g},{high:g}: give two numbers, the lower first")
        applied = {"method": "window"}
    else:
        check_quantiles(quantiles)
        low, high, method = _range(data, quantiles, mask)
        applied = {"method": method, "quantiles": [float(q) for q in quantiles], "masked": mask is not None}
    scaled = data.to(torch.float32, copy=True).sub_(low).div_(high - low).clamp_(0, 1)
    return scaled, {**applied, "low": low, "high": high}


def check_quantiles(quantiles: tuple[float, float]) -> None:
    """InputError unless these are two numbers from 0 to 1, the lower first."""
    if not 0 <= quantiles[0] < quantiles[1] <= 1:
        raise InputError(
            f"quantiles {quantiles[0]:g},{quantiles[1]:g}: give two numbers from 0 to 1, the lower first"
        )


def _range(
    values: Tensor, quantiles: tuple[float, float], mask: Image | Tensor | None
) -> tuple[float, float, str]:
    if mask is not None:
        values = values[mask.data != 0]
        if values.numel() == 0:
            raise InputError("the mask is empty: it leaves no voxel to scale the intensities by")
    flat = values.cpu().reshape(-1).numpy()
    ranks = sorted({min(int(q * flat.size), flat.size - 1) for q in quantiles})
    ordered = np.partition(flat, ranks)
    low, high = float(ordered[ranks[0]]), float(ordered[ranks[-1]])
    if low < high:
        return low, high, "quantiles"
    low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1.0, "range"
