"""How alike two images are, as one number: larger is more alike. Windowed ones are kernels; these need no window."""

from __future__ import annotations

from torch import Tensor

from neuralreg import kernels

SIMILARITIES = ("lncc", "ssim", "ncc", "mse", "l1")
WINDOWED = ("lncc", "ssim")  # these compare neighbours, so the points must form a lattice


def similarity(
    name: str,
    fixed: Tensor,
    warped: Tensor,
    *,
    mask: Tensor | None = None,
    window: int = 9,
) -> Tensor:
    """One of SIMILARITIES between images (B, C, *spatial); ``mask`` (B, 1, *spatial) chooses what counts.

    ``window``: edge of LNCC's boxes and of SSIM's Gaussian windows. Differences (mse, l1) have their sign turned, so
    that larger is more alike throughout.
    """
    if name == "lncc":
        return kernels.lncc(fixed, warped, window, mask=mask)
    if name == "ssim":
        if mask is None:
            return kernels.ssim(fixed, warped, window)
        return mean_over(kernels.ssim(fixed, warped, window, reduction="none"), mask)
    if name not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {name!r}")
    return {"ncc": global_ncc, "mse": negative_mse, "l1": negative_l1}[name](fixed, warped, mask)


def mean_over(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (B, C, *spatial) where the mask (broadcast) is not 0; 0 where it is nowhere."""
    if mask is None:
        return values.mean()
    weight = mask.to(values.dtype).expand_as(values)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def negative_mse(fixed: Tensor, warped: Tensor, mask: Tensor | None = None) -> Tensor:
    """Minus the mean squared difference."""
    return -mean_over((fixed - warped).square(), mask)


def negative_l1(fixed: Tensor, warped: Tensor, mask: Tensor | None = None) -> Tensor:
    """Minus the mean absolute difference."""
    return -mean_over((fixed - warped).abs(), mask)


def global_ncc(fixed: Tensor, warped: Tensor, mask: Tensor | None = None, eps: float = 1e-10) -> Tensor:
    """The correlation coefficient of all values, in [-1, 1]; 0 where one of the images is constant.

    ``eps`` is added to the product of the variances, which images in [0, 1] exceed by far.
    """
    a = fixed - mean_over(fixed, mask)
    b = warped - mean_over(warped, mask)
    covariance = mean_over(a * b, mask)
    return covariance / (mean_over(a * a, mask) * mean_over(b * b, mask) + eps).sqrt()
