"""MIND-SSC: every voxel described by how its neighbourhood resembles itself, which another modality shares."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from neuralreg import kernels

DILATION = 2  # voxels to a neighbour
NARROWEST, WIDEST = 1e-3, 1e3  # of a voxel's variance, times the mean one
FLATTEST = 1e-6  # mean variance of images in [0, 1] below which there is nothing to describe


def mind(image: Tensor, window: int = 5, dilation: int = DILATION) -> Tensor:
    """The self-similarity context of Heinrich et al. 2013 (MICCAI, Towards realtime multimodal fusion).

    Of a voxel's six neighbours at ``dilation`` voxels (four in 2-D) every two that are not opposite are compared: the
    squared difference of the image at one and the other, averaged over a box of ``window`` voxels an axis, is D_k; the
    descriptor is exp(-(D_k - min D) / V), V the voxel's mean of D_k - min D, held within 1e-3 and 1e3 times its mean
    over the item. Beyond the border lies the outermost voxel, boxes average the voxels inside the image.

    Args:
        image: (B, C, *spatial), floating point, 2-D or 3-D. Axes may have size 1.

    Returns:
        (B, 12 C, *spatial), in 2-D (B, 4 C, *spatial), in [0, 1], differentiable. All 1 where the image is constant.

    Memory until the backward pass: about four times the result.
    """
    ndim = image.ndim - 2
    if ndim not in (2, 3) or window < 1 or dilation < 1:
        raise ValueError(
            f"mind: needs (B, C, H, W) or (B, C, D, H, W), window and dilation from 1, got {tuple(image.shape)}, "
            f"{window}, {dilation}"
        )
    around = [moved(image, axis, sign * dilation) for axis in range(2, image.ndim) for sign in (1, -1)]
    edges = [(a, b) for a, b in itertools.combinations(range(2 * ndim), 2) if a // 2 != b // 2]
    differences = torch.stack([(around[a] - around[b]).square() for a, b in edges], 2)
    distances = kernels.box_mean(differences.flatten(1, 2), window).unflatten(1, (image.shape[1], len(edges)))
    above = distances - distances.amin(2, keepdim=True)
    variance = above.mean(2, keepdim=True)
    usual = variance.detach().mean(dim=tuple(range(3, variance.ndim)), keepdim=True)
    variance = torch.maximum(torch.minimum(variance, usual * WIDEST), (usual * NARROWEST).clamp(min=FLATTEST))
    return (above * (-1 / variance)).exp().flatten(1, 2)


def moved(image: Tensor, axis: int, step: int) -> Tensor:
    """The image at ``step`` voxels further along an axis, its outermost voxel beyond the border."""
    size = image.shape[axis]
    step = max(-size, min(size, step))
    kept = image.narrow(axis, max(step, 0), size - abs(step))
    edge = image.narrow(axis, size - 1 if step > 0 else 0, 1)
    shape = list(image.shape)
    shape[axis] = abs(step)
    return torch.cat([kept, edge.expand(shape)] if step > 0 else [edge.expand(shape), kept], axis)
