"""Sampling of images at continuous coordinates, in plain torch.

Both functions rest on ``torch.nn.functional.grid_sample``: they have first derivatives with respect to image
and coordinates, and no second ones (pytorch#34704).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = 1e6  # beyond every image, and an integer where torch casts the coordinate to one


def _computing_type(*tensors: Tensor) -> torch.dtype:
    """Their common type, at least float32: half types carry too few bits for a coordinate."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """``torch.nn.functional.grid_sample``; half types compute in float32, NaN lies below the first voxel.

    input (B, C, *in) and grid (B, *out, ndim), last axis x, y(, z) in [-1, 1], give (B, C, *out) in the
    input's dtype.
    """
    dtype = _computing_type(input, grid)
    return _sample(input.to(dtype), grid.to(dtype), mode, padding_mode, align_corners).to(input.dtype)


def warp(
    image: Tensor,
    displacement: Tensor,
    affine: Tensor | None = None,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> Tensor:
    """The image read at A (i + u(i)) for every output voxel i, all in voxels.

    image (B, C, *in), displacement u (B, ndim, *out), affine A (B, ndim, ndim + 1) give (B, C, *out) in the
    image's dtype. Voxel i has its centre at coordinate i and NaN lies below the first one; "reflection"
    mirrors at the centres of the outermost voxels (the align_corners=True meaning); "nearest" rounds halves
    to even.
    """
    ndim = displacement.shape[1]
    dtype = _computing_type(image, displacement)
    points = _add_identity(displacement.to(dtype))
    if affine is not None:
        matrix, shift = affine.to(dtype).split([ndim, 1], dim=2)
        points = (matrix @ points.flatten(2) + shift).unflatten(2, displacement.shape[2:])
    if mode == "nearest":
        points = points.round()  # here, not after the detour over [-1, 1], whose rounding would move the ties
    sizes = image.shape[2:]
    axes = list(points.unbind(1))
    if padding_mode == "reflection":
        axes = [_reflect(p, n) for p, n in zip(axes, sizes, strict=True)]
        padding_mode = "border"
    # align_corners=True could not tell coordinates apart on an axis of one voxel
    normalised = [(2 * p + 1) / n - 1 for p, n in zip(axes, sizes, strict=True)]
    grid = torch.stack(normalised[::-1], dim=-1)
    return _sample(image.to(dtype), grid, mode, padding_mode, align_corners=False).to(image.dtype)


def _sample(input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    # NaN in the grid makes torch write out of bounds in 2-D (a crash in 2.13). It counts as far below the
    # first voxel, which is what torch gives in 3-D: 0 with zero padding, else voxel 0.
    below = -1.0 if padding_mode == "reflection" else -FAR
    grid = torch.where(grid.isnan(), below, grid).clamp(-FAR, FAR)
    return F.grid_sample(input, grid, mode, padding_mode, align_corners)


def _add_identity(displacement: Tensor) -> Tensor:
    """i + u(i)."""
    channels = []
    for axis, channel in enumerate(displacement.unbind(1)):
        index = torch.arange(channel.shape[axis + 1], dtype=channel.dtype, device=channel.device)
        channels.append(channel + index.view(-1, *[1] * (channel.ndim - axis - 2)))
    return torch.stack(channels, dim=1)


def _reflect(p: Tensor, size: int) -> Tensor:
    """p mirrored at 0 and size - 1 until it lies between them: a triangle wave of period 2 (size - 1)."""
    if size == 1:
        return 0 * p
    last = size - 1
    return last - (torch.remainder(p, 2 * last) - last).abs()
