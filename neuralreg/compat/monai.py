"""MONAI's registration loss and layers by their names and numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralreg import kernels


class LocalNormalizedCrossCorrelationLoss(torch.nn.Module):
    """`monai.losses.LocalNormalizedCrossCorrelationLoss` with the rectangular kernel.

    The one difference: a window that is flat in either image (its variance below 1e-6 of its mean square) counts 0 and
    has no gradient, where the original divides rounding errors by a small constant.

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


class Warp(torch.nn.Module):
    """`monai.networks.blocks.Warp`: an image read at voxel + displacement.

    Args:
        mode: "bilinear" or "nearest" (linear in 3-D as well).
        padding_mode: "zeros", "border" or "reflection" (at the centres of the outermost voxels).
        jitter: must be False.

    Raises:
        ValueError: no such mode; MONAI's numbers for its compiled extension among them.
        NotImplementedError: "bicubic", or jitter.
    """

    def __init__(self, mode: str = "bilinear", padding_mode: str = "border", jitter: bool = False):
        super().__init__()
        mode, padding_mode = (
            getattr(option, "value", option) for option in (mode, padding_mode)
        )  # enums too
        if mode == "bicubic":
            raise NotImplementedError(
                "mode 'bicubic': only 'bilinear' and 'nearest' here; take MONAI's own Warp"
            )
        if mode not in ("bilinear", "nearest"):
            raise ValueError(f"mode must be 'bilinear' or 'nearest', got {mode!r}")
        if padding_mode not in ("zeros", "border", "reflection"):
            raise ValueError(f"padding_mode must be 'zeros', 'border' or 'reflection', got {padding_mode!r}")
        if jitter:
            raise NotImplementedError("jitter: only False here; take MONAI's own Warp")
        self.mode, self.padding_mode = mode, padding_mode

    def forward(self, image: Tensor, ddf: Tensor) -> Tensor:
        """image (B, C, *spatial) and ddf (B, ndim, *spatial) in voxels -> (B, C, *spatial)."""
        if image.ndim not in (4, 5):
            raise NotImplementedError(f"2 or 3 spatial axes, got {tuple(image.shape)}")
        expected = (image.shape[0], image.ndim - 2, *image.shape[2:])
        if ddf.shape != expected:
            raise ValueError(f"ddf must be {expected} for image {tuple(image.shape)}, got {tuple(ddf.shape)}")
        if 1 in image.shape[2:]:  # MONAI does not move along an axis of one voxel
            moving = [float(size > 1) for size in image.shape[2:]]
            ddf = ddf * ddf.new_tensor(moving).view(-1, *[1] * (ddf.ndim - 2))
        return kernels.warp(image, ddf, mode=self.mode, padding_mode=self.padding_mode)


class DVF2DDF(torch.nn.Module):
    """`monai.networks.blocks.DVF2DDF`: a velocity field integrated by scaling and squaring.

    Args:
        num_steps: squarings, above 0.
        mode, padding_mode: as for :class:`Warp`.

    Raises:
        ValueError: num_steps is not positive; and as :class:`Warp`.
    """

    def __init__(self, num_steps: int = 7, mode: str = "bilinear", padding_mode: str = "zeros"):
        super().__init__()
        if num_steps <= 0:
            raise ValueError(f"num_steps must be positive, got {num_steps}")
        self.num_steps = num_steps
        self.warp_layer = Warp(mode, padding_mode)

    def forward(self, dvf: Tensor) -> Tensor:
        """dvf (B, ndim, *spatial) in voxels -> the displacement, of the same shape."""
        ddf = dvf / 2**self.num_steps
        for _ in range(self.num_steps):
            ddf = ddf + self.warp_layer(ddf, ddf)
        return ddf
