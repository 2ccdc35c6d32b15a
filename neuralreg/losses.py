"""How alike two images are, as one number: larger is more alike. Windowed ones are kernels; these need no window."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from neuralreg import kernels
from neuralreg.similarities.mind import mind
from neuralreg.similarities.nmi import nmi

SIMILARITIES = ("lncc", "ssim", "ncc", "mse", "l1", "nmi", "mind")
WINDOWED = ("lncc", "ssim", "mind")  # these compare neighbours, so the points must form a lattice
POINTWISE = tuple(name for name in SIMILARITIES if name not in WINDOWED)
POOLED = ("ncc", "nmi")  # one number of all values together, no mean over them


class Mean(Protocol):
    """How the values (B, C, *spatial) of voxels or windows become one number, as :func:`mean_over` does it."""

    def __call__(self, values: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor: ...


def mean_over(values: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Mean of (B, C, *spatial), weighted by a mask that is broadcast; 0 where the mask is nowhere.

    ``dropout``: the share of the values that is left out at random.
    """
    mask = thinned(mask, values, dropout)
    if mask is None:
        return values.mean()
    weight = mask.to(values.dtype).expand_as(values)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def similarity(
    name: str,
    fixed: Tensor,
    warped: Tensor,
    *,
    mask: Tensor | None = None,
    window: int = 9,
    padding: str = "same",
    dropout: float = 0.0,
    mean: Mean = mean_over,
) -> Tensor:
    """One of SIMILARITIES between images (B, C, *spatial); ``mask`` (B, 1, *spatial) chooses what counts.

    ``window``: edge of LNCC's and MIND's boxes and of SSIM's Gaussian windows, ``padding`` as there; "mind" has "same".
    ``dropout`` is the share of the windows (or of the voxels, where there are none) that is left out of the mean at
    random: NIR's intensity sampling; those in POOLED are no means and take none. ``mean`` takes the means; "nmi" knows
    its own alone. Differences (mse, l1, and mind, the squared one of descriptors) have their sign turned, so that
    larger is more alike throughout.

    Raises:
        ValueError: an unknown name, dropout with one of POOLED, or "mind" with padding "valid".
    """
    if name not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {name!r}")
    if name in POOLED:
        if dropout:
            raise ValueError(f"similarity {name} is not a mean over voxels: dropout does not apply to it")
        return global_ncc(fixed, warped, mask, mean=mean) if name == "ncc" else nmi(fixed, warped, mask)
    at_once = mean is mean_over and not dropout  # the kernel takes the mean itself
    if name == "lncc" and at_once:
        return kernels.lncc(fixed, warped, window, mask=mask, padding=padding)
    if name == "ssim" and at_once and mask is None:
        return kernels.ssim(fixed, warped, window, padding=padding)
    counted = mask
    if name == "lncc":
        values = kernels.lncc(fixed, warped, window, mask=mask, padding=padding, reduction="none")
    elif name == "ssim":
        values = kernels.ssim(fixed, warped, window, padding=padding, reduction="none")
    elif name == "mind":
        if padding != "same":
            raise ValueError(
                f"similarity mind describes voxels up to the border: padding {padding} is not for it"
            )
        difference = mind(fixed, window) - mind(warped, window)
        values = -difference.square().mean(1, keepdim=True)
    else:
        difference = fixed - warped
        values = -(difference.square() if name == "mse" else difference.abs())
    if mask is not None and name in WINDOWED and padding == "valid":
        counted = at_centres(mask, window)
    return mean(values, counted, dropout)


def thinned(mask: Tensor | None, values: Tensor, dropout: float) -> Tensor | None:
    """The mask without a random share of its elements."""
    if not dropout:
        return mask
    kept = torch.empty_like(values).bernoulli_(1 - dropout)
    return kept if mask is None else kept * mask


def at_centres(mask: Tensor, window: int) -> Tensor:
    """A mask (B, C, *spatial) at the centres of the windows that fit, voxel (w - 1) // 2 of each."""
    for axis in range(2, mask.ndim):
        mask = mask.narrow(axis, (window - 1) // 2, mask.shape[axis] - window + 1)
    return mask


def global_ncc(
    fixed: Tensor, warped: Tensor, mask: Tensor | None = None, eps: float = 1e-10, mean: Mean = mean_over
) -> Tensor:
    """The correlation coefficient of all values, in [-1, 1]; 0 where one of the images is constant.

    ``eps`` is added to the product of the variances, which images in [0, 1] exceed by far.
    """
    # Centred values add up to 0, so that a change of the mean changes nothing: it needs no gradient.
    a = fixed - mean(fixed, mask).detach()
    b = warped - mean(warped, mask).detach()
    covariance = mean(a * b, mask)
    return covariance / (mean(a * a, mask) * mean(b * b, mask) + eps).sqrt()


def zero_rule_lncc(
    fixed: Tensor,
    warped: Tensor,
    window: int,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    mean: Mean = mean_over,
) -> Tensor:
    """NIR's LNCC: windows that fit, and differences in the place of windows without content.

    A window in which one of the images (at least 0 everywhere) is all zero says nothing and has an exploding gradient;
    it leaves the mean, and the voxels under it count by their squared difference instead. ``dropout`` applies to both
    means, which ``mean`` takes.
    """
    values = kernels.lncc(fixed, warped, window, mask=mask, padding="valid", zero_rule=True, reduction="none")
    with torch.no_grad():
        filled = (largest(fixed, window) > 0) & (largest(warped, window) > 0)
        empty = functional.pad((~filled).to(fixed.dtype), [window - 1] * (2 * (fixed.ndim - 2)))
        under_empty = largest(empty, window)
        counted = filled.to(fixed.dtype)
        if mask is not None:
            counted, under_empty = counted * at_centres(mask, window), under_empty * mask
    difference = (fixed - warped).square()
    return mean(values, counted, dropout) - mean(difference, under_empty, dropout)


def soft_dice(fixed: Tensor, moving: Tensor, displacement: Tensor) -> Tensor:
    """Mean Dice of label maps, the moving one warped as one-hot volumes; differentiable in the displacement.

    fixed, moving (B, 1, *spatial), integers; displacement (B, ndim, *spatial) in fixed voxels. Every label but 0 that
    is in either map of a pair counts, with 2 sum(f m) / (sum(f) + sum(m)); the mean is over a pair's labels, then over
    the pairs that have any. 0 where none has. On a GPU the labels are counted, which waits for the device.

    Memory: as many volumes a pair as the batch has labels, two times over.
    """
    ids = torch.cat([fixed.flatten(), moving.flatten()]).unique()
    ids = ids[ids != 0].view(1, -1, *[1] * (fixed.ndim - 2))
    truth, source = ((labels == ids).to(displacement.dtype) for labels in (fixed, moving))
    if not ids.numel():
        return displacement.sum() * 0
    axes = tuple(range(2, fixed.ndim))
    warped = kernels.warp(source, displacement)
    size = truth.sum(axes)
    present = ((size > 0) | (source.sum(axes) > 0)).to(displacement.dtype)
    scores = 2 * (truth * warped).sum(axes) / (size + warped.sum(axes)).clamp(min=1)
    count = present.sum(1)
    return ((scores * present).sum(1) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


def largest(image: Tensor, window: int) -> Tensor:
    """The largest value in every window that fits, one axis after the other."""
    ndim = image.ndim - 2
    pool = functional.max_pool2d if ndim == 2 else functional.max_pool3d
    for axis in range(ndim):
        size = [1] * ndim
        size[axis] = window
        image = pool(image, size, stride=1)
    return image
