"""Sampling of images at continuous coordinates, in plain torch.

Values and first derivatives are those of ``torch.nn.functional.grid_sample``. It has no second ones (pytorch#34704):
where they are asked for, the same function written corner by corner takes its place, and autograd nests.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = 1e6  # beyond every image, and an integer where torch casts the coordinate to one
MODES = ("bilinear", "nearest")
PADDINGS = ("zeros", "border", "reflection")  # in the order of aten's numbers


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
    dtype = _computing_type(image, displacement)
    points = _positions(displacement, affine, dtype)
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


def warp_with_gradient(
    image: Tensor, displacement: Tensor, affine: Tensor | None = None, padding_mode: str = "zeros"
) -> tuple[Tensor, Tensor]:
    """``warp`` and its derivative with respect to the displacement (B, C, ndim, *out)."""
    dtype = _computing_type(image, displacement)
    ndim, x = displacement.shape[1], image.to(dtype)
    axes, slopes = [], []
    for p, n in zip(_positions(displacement, affine, dtype).unbind(1), image.shape[2:], strict=True):
        padded, slope = _pad(p, n, padding_mode)
        axes.append(padded)
        slopes.append(slope)
    gradient = torch.stack(
        [
            _linear(x, axes, k).masked_fill(slopes[k][:, None] == 0, 0) * slopes[k][:, None]
            for k in range(ndim)
        ],
        2,
    )
    if affine is not None:
        gradient = torch.einsum("bkj,bck...->bcj...", affine.to(dtype)[:, :, :ndim], gradient)
    return _linear(x, axes).to(image.dtype), gradient.to(image.dtype)


def warp_labels(
    labels: Tensor, displacement: Tensor, affine: Tensor | None, mode: str, padding_mode: str
) -> Tensor:
    """``warp`` without computing with the values: the nearest label, or the one with most of the weights."""
    dtype = _computing_type(displacement)
    points = _positions(displacement, affine, dtype).unbind(1)
    axes = [_pad(p, n, padding_mode)[0] for p, n in zip(points, labels.shape[2:], strict=True)]
    if mode == "nearest":
        return _read(labels, [a.round() for a in axes])
    weights, corners = [], []
    for weight, at in _corners(axes):
        weights.append(weight.double()[:, None])
        corners.append(_read(labels, at))
    votes = torch.stack(weights)
    sums = [
        torch.stack([other == label for other in corners]).mul(votes).sum(0)  # of those who agree
        for label in corners
    ]
    most, best = torch.full_like(sums[0], -1.0), corners[0]
    for total, label in zip(sums, corners, strict=True):
        wins = (total > most) | ((total == most) & (label < best))
        most, best = torch.where(wins, total, most), torch.where(wins, label, best)
    return best


class _GridSample(torch.autograd.Function):
    """torch's grid_sample, differentiable as often as torch is."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool
    ) -> Tensor:
        ctx.save_for_backward(input, grid)
        ctx.options = (mode, padding_mode, align_corners)
        return F.grid_sample(input, grid, mode, padding_mode, align_corners)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, grid = ctx.saved_tensors
        mode, padding_mode, align_corners = ctx.options
        wants = list(ctx.needs_input_grad[:2])
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            numbers = (MODES.index(mode), PADDINGS.index(padding_mode), align_corners)
            aten = torch.ops.aten
            run = aten.grid_sampler_2d_backward if input.ndim == 4 else aten.grid_sampler_3d_backward
            to_input, to_grid = run(grad, input, grid, *numbers, [wants[0], True])
            return to_input if wants[0] else None, to_grid if wants[1] else None, None, None, None
        value = _by_corners(input, grid, mode, padding_mode, align_corners)
        inputs = [t for t, want in zip((input, grid), wants, strict=True) if want]
        found = torch.autograd.grad(
            value, inputs, grad, create_graph=True, allow_unused=True, materialize_grads=True
        )
        gradients = iter(found)
        return (*(next(gradients) if want else None for want in wants), None, None, None)


def _sample(input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    # NaN in the grid makes torch write out of bounds in 2-D (a crash in 2.13). It counts as far below the
    # first voxel, which is what torch gives in 3-D: 0 with zero padding, else voxel 0.
    below = -1.0 if padding_mode == "reflection" else -FAR
    grid = torch.where(grid.isnan(), below, grid).clamp(-FAR, FAR)
    return _GridSample.apply(input, grid, mode, padding_mode, align_corners)


def _by_corners(input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """grid_sample as a sum over the corners of the cells."""
    axes = []
    for g, n in zip(reversed(grid.unbind(-1)), input.shape[2:], strict=True):
        p = (g + 1) / 2 * (n - 1) if align_corners else ((g + 1) * n - 1) / 2
        axes.append(_pad(p, n, padding_mode, 0.0 if align_corners else 0.5)[0])
    return _read(input, [a.round() for a in axes]) if mode == "nearest" else _linear(input, axes)


def _corners(axes: list[Tensor], derivative: int | None = None) -> list[tuple[Tensor, list[Tensor]]]:
    """Weight and voxel of every corner of the cells; the weight's derivative along one axis where given."""
    lows = [a.detach().floor() for a in axes]
    found = []
    for step in itertools.product((0, 1), repeat=len(axes)):
        weight = torch.ones_like(axes[0])
        for k, (a, low) in enumerate(zip(axes, lows, strict=True)):
            if k == derivative:
                weight = weight * (2 * step[k] - 1)
            else:
                weight = weight * (a - low if step[k] else 1 - (a - low))
        found.append((weight, [low + s for low, s in zip(lows, step, strict=True)]))
    return found


def _linear(image: Tensor, axes: list[Tensor], derivative: int | None = None) -> Tensor:
    """Linear interpolation at padded coordinates, one tensor (B, *out) an axis; or its slope along one axis."""
    parts = [weight[:, None] * _read(image, at) for weight, at in _corners(axes, derivative)]
    return torch.stack(parts).sum(0)


def _read(image: Tensor, at: list[Tensor]) -> Tensor:
    """The voxels (B, C, *out) at whole coordinates, 0 outside."""
    index, inside = torch.zeros_like(at[0], dtype=torch.int64), torch.ones_like(at[0], dtype=torch.bool)
    for a, n in zip(at, image.shape[2:], strict=True):
        inside = inside & (a >= 0) & (a <= n - 1)
        index = index * n + a.detach().clamp(0, n - 1).long()
    flat = index.flatten(1)[:, None].expand(-1, image.shape[1], -1)
    values = image.flatten(2).gather(2, flat).view(*image.shape[:2], *at[0].shape[1:])
    return torch.where(inside[:, None], values, values.new_zeros(()))


def _positions(displacement: Tensor, affine: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A (i + u(i)), (B, ndim, *out)."""
    points = _add_identity(displacement.to(dtype))
    if affine is None:
        return points
    matrix, shift = affine.to(dtype).split([displacement.shape[1], 1], dim=2)
    return (matrix @ points.flatten(2) + shift).unflatten(2, displacement.shape[2:])


def _add_identity(displacement: Tensor) -> Tensor:
    """i + u(i)."""
    channels = []
    for axis, channel in enumerate(displacement.unbind(1)):
        index = torch.arange(channel.shape[axis + 1], dtype=channel.dtype, device=channel.device)
        channels.append(channel + index.view(-1, *[1] * (channel.ndim - axis - 2)))
    return torch.stack(channels, dim=1)


def _pad(p: Tensor, size: int, padding_mode: str, edge: float = 0.0) -> tuple[Tensor, Tensor]:
    """Coordinates after padding, and d(padded) / d(coordinate); the image ends ``edge`` beyond its centres."""
    slope = torch.ones_like(p)
    if padding_mode == "zeros":
        return torch.where(p.isnan(), -FAR, p).clamp(-FAR, FAR), slope
    p = torch.where(p.isnan(), -1.0 if padding_mode == "border" else -edge, p)
    if padding_mode == "reflection":
        span = size - 1 + 2 * edge
        if span == 0:
            return 0 * p.clamp(0, 0), 0 * slope
        rest = torch.remainder(p + edge, 2 * span)
        slope = torch.where(rest > span, -slope, slope)
        p = _reflect(p + edge, span + 1) - edge
    inside = (p > 0) & (p < size - 1)
    return torch.where(inside, p, p.detach().clamp(0, size - 1)), torch.where(inside, slope, 0.0)


def _reflect(p: Tensor, size: float) -> Tensor:
    """p mirrored at 0 and size - 1 until it lies between them: a triangle wave of period 2 (size - 1)."""
    if size == 1:
        return 0 * p
    last = size - 1
    return last - (torch.remainder(p, 2 * last) - last).abs()
