"""Box means in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def box_mean(image: Tensor, windows: list[int]) -> Tensor:
    """Mean over a box around every voxel of (B, C, *spatial), of the voxels inside the image.

    The box of voxel i along an axis is i - (w - 1) // 2 ... i + w // 2. One axis after the other, every box summed on
    its own in float64: two float64 volumes live while it runs.
    """
    if image.numel() == 0:
        return image.clone()
    sums, inside = image.double(), image.new_ones(1, 1, *image.shape[2:]).double()
    for axis, window in enumerate(windows, 2):
        sums, inside = (_sums(x, axis, window) for x in (sums, inside))
    return (sums / inside).to(image.dtype)


def _sums(x: Tensor, axis: int, window: int) -> Tensor:
    most = max(x.shape[axis] - 1, 0)
    before, after = min((window - 1) // 2, most), min(window // 2, most)
    padded = F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [before, after])
    return padded.unfold(axis, before + 1 + after, 1).sum(-1)
