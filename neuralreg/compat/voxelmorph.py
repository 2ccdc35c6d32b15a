"""VoxelMorph's loss and layers by their names and numbers; TransMorph's layers are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from neuralreg import kernels


class NCC:
    """VoxelMorph's `losses.NCC`: `NCC(win).loss(y_true, y_pred)`, and the same as a call.

    The one difference: a window that is flat in either image (its variance below 1e-6 of its mean square) counts 0 and
    has no gradient, where the original divides rounding errors by a small constant.

    Args:
        win: voxels of the window, one number an axis, all equal and odd; None: 9.

    Raises:
        ValueError: an even window, or axes that differ (VoxelMorph pads both as if they did not).
    """

    def __init__(self, win: int | Sequence[int] | None = None):
        sizes = [9] if win is None else [win] if isinstance(win, int) else [int(w) for w in win]
        if not sizes or min(sizes) < 1 or sizes[0] % 2 == 0 or len(set(sizes)) > 1:
            raise ValueError(f"win must be odd and the same along every axis, got {win}")
        self.win = win
        self._window = sizes[0]

    def loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Minus the mean squared local correlation; images (B, 1, *spatial), two or three axes."""
        if isinstance(self.win, Sequence) and len(self.win) not in (1, y_true.ndim - 2):
            raise ValueError(f"win has {len(self.win)} axes, the images {y_true.ndim - 2}")
        if y_true.ndim > 1 and y_true.shape[1] != 1:
            raise ValueError(f"images must have one channel, got {tuple(y_true.shape)}")
        return -kernels.lncc(y_true, y_pred, self._window, eps=1e-5, eps_mode="product")

    __call__ = loss


class SpatialTransformer(torch.nn.Module):
    """VoxelMorph's and TransMorph's `SpatialTransformer`: src read at voxel + flow, 0 outside.

    The original keeps an identity grid as a buffer; here there is none, and the one in a saved state is passed over.

    Args:
        size: voxels of the images along their two or three axes.
        mode: "bilinear" (linear in 3-D as well) or "nearest".

    Raises:
        ValueError: an option does not fit.
    """

    def __init__(self, size: Sequence[int], mode: str = "bilinear"):
        super().__init__()
        if len(size) not in (2, 3):
            raise ValueError(f"size must have 2 or 3 axes, got {tuple(size)}")
        if mode not in ("bilinear", "nearest"):
            raise ValueError(f"mode must be 'bilinear' or 'nearest', got {mode!r}")
        self.size, self.mode = tuple(int(n) for n in size), mode

    def forward(self, src: Tensor, flow: Tensor) -> Tensor:
        """src (B, C, *size) and flow (B, ndim, *size) in voxels -> (B, C, *size)."""
        for name, tensor in (("src", src), ("flow", flow)):
            if tuple(tensor.shape[2:]) != self.size:
                raise ValueError(
                    f"{name} must be (B, C, {', '.join(map(str, self.size))}), got {tuple(tensor.shape)}"
                )
        return kernels.warp(src, flow, mode=self.mode)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}grid", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class VecInt(torch.nn.Module):
    """VoxelMorph's and TransMorph's `VecInt`: a velocity field integrated by scaling and squaring, 0 outside.

    Args:
        inshape: voxels of the field along its two or three axes.
        nsteps: squarings, at least 0.

    Raises:
        ValueError: an option does not fit.
    """

    def __init__(self, inshape: Sequence[int], nsteps: int):
        super().__init__()
        if nsteps < 0:
            raise ValueError(f"nsteps must be at least 0, got {nsteps}")
        self.nsteps = nsteps
        self.transformer = SpatialTransformer(inshape)

    def forward(self, vec: Tensor) -> Tensor:
        """vec (B, ndim, *inshape) in voxels -> the displacement, of the same shape."""
        vec = vec / 2**self.nsteps
        for _ in range(self.nsteps):
            vec = vec + self.transformer(vec, vec)
        return vec
