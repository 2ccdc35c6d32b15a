"""Drop-in names for other libraries' losses, computed by neuralreg's kernels.

The one difference to the originals: a window that is flat in either image (its variance below 1e-6 of its mean
square) counts 0 and has no gradient, where the originals divide rounding errors by a small constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neuralreg import kernels


class LocalNormalizedCrossCorrelationLoss(torch.nn.Module):
    """`monai.losses.LocalNormalizedCrossCorrelationLoss` with the rectangular kernel.

    Args:
        spatial_dims: 1, 2 or 3.
        kernel_size: voxels of the window along every axis, odd.
        kernel_type: "rectangular"; the triangular and the gaussian kernel have no fast version here.
        reduction: "mean", "sum" or "none" (the map).
        smooth_nr: added to the numerator.
        smooth_dr: least variance of a window, above 0.

    Raises:
        ValueError: an option does not fit.
        NotImplementedError: another kernel type.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        kernel_size: int = 3,
        kernel_type: str = "rectangular",
        reduction: str = "mean",
        smooth_nr: float = 0.0,
        smooth_dr: float = 1e-5,
    ):
        super().__init__()
        if spatial_dims not in (1, 2, 3):
            raise ValueError(f"spatial_dims must be 1, 2 or 3, got {spatial_dims}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        if kernel_type in ("triangular", "gaussian"):
            raise NotImplementedError(
                f"kernel_type {kernel_type!r}: only 'rectangular' here; take MONAI's own loss for this kernel"
            )
        if kernel_type != "rectangular":
            raise ValueError(f"kernel_type must be 'rectangular', got {kernel_type!r}")
        reduction = str(getattr(reduction, "value", reduction))  # MONAI also takes its LossReduction
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        self.spatial_dims, self.kernel_size, self.reduction = spatial_dims, kernel_size, reduction
        self.smooth_nr, self.smooth_dr = float(smooth_nr), float(smooth_dr)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss, from -1 (alike) to 0; images (B, C, *spatial)."""
        if pred.ndim - 2 != self.spatial_dims:
            raise ValueError(f"expected {self.spatial_dims} spatial axes, got {tuple(pred.shape)}")
        if target.shape != pred.shape:
            raise ValueError(f"shapes differ: pred {tuple(pred.shape)}, target {tuple(target.shape)}")
        window = [self.kernel_size] * self.spatial_dims
        if self.spatial_dims == 1:
            pred, target, window = pred.unsqueeze(2), target.unsqueeze(2), [1, *window]
        value = kernels.lncc(
            target,
            pred,
            window,
            eps=self.smooth_dr,
            eps_mode="clamp",
            numerator_eps=self.smooth_nr,
            reduction="mean" if self.reduction == "mean" else "none",
        )
        if self.reduction == "sum":
            value = value.sum()
        elif self.reduction == "none" and self.spatial_dims == 1:
            value = value.squeeze(2)
        return -value


class NCC:
    """VoxelMorph's `losses.NCC`: `NCC(win).loss(y_true, y_pred)`, and the same as a call.

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
