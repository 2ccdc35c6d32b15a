"""Reading an image or a label map at voxel coordinates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reader = Callable[[Tensor], Tensor]


def resampler(data: Tensor, interpolation: str) -> tuple[Reader, torch.dtype]:
    """A function that reads ``data`` (*sp) at points (ndim, *out), and the type of its values.

    Beyond the border the outermost voxel is read. "linear" gives float32; "nearest" and "label" the data's
    type.
    """
    if interpolation == "linear":
        image = data[None].to(torch.float32)
        return lambda points: _read(image, points, "bilinear")[0], torch.float32
    if interpolation == "nearest":
        return _nearest(data), data.dtype
    return _vote(data), data.dtype


def sample_points(field: Tensor, points: Tensor) -> Tensor:
    """field (C, *sp) linearly at voxel coordinates (ndim, *any), constant beyond its border -> (C, *any)."""
    from neuralreg import kernels

    sizes = field.shape[1:]
    # align_corners=False is defined for an axis of one voxel too
    axes = [((2 * p + 1) / n - 1).to(field.dtype) for p, n in zip(points.flatten(1), sizes, strict=True)]
    grid = torch.stack(axes[::-1], dim=-1).view(1, *[1] * (len(sizes) - 1), -1, len(sizes))
    sampled = kernels.grid_sample(field[None], grid, "bilinear", "border", False)
    return sampled.view(field.shape[0], *points.shape[1:])


def _read(image: Tensor, points: Tensor, mode: str) -> Tensor:
    """image (C, *sp) at points (ndim, *out) -> (C, *out)."""
    from neuralreg import kernels

    displacement = points.clone()
    for axis in range(displacement.shape[0]):
        index = torch.arange(displacement.shape[axis + 1], dtype=points.dtype, device=points.device)
        displacement[axis] -= index.view(-1, *[1] * (displacement.ndim - axis - 2))
    return kernels.warp(image[None], displacement[None], mode=mode, padding_mode="border")[0]


def _coded(data: Tensor) -> tuple[Tensor, Tensor]:
    """The labels in ascending order, and the map of their ranks: exact in float32 however large they are."""
    low, high = (int(x) for x in torch.aminmax(data))
    if data.is_floating_point() or high - low > 1 << 22:
        labels, ranks = torch.unique(data, return_inverse=True)
        return labels, ranks.to(torch.int32)
    offsets = data.long() - low
    present = torch.bincount(offsets.flatten()) > 0  # no sort: labels are small integers
    labels = (present.nonzero()[:, 0] + low).to(data.dtype)
    return labels, (present.cumsum(0, dtype=torch.int32) - 1)[offsets]


def _nearest(data: Tensor) -> Reader:
    if data.is_floating_point():
        return lambda points: _read(data[None].to(torch.float32), points, "nearest")[0].to(data.dtype)
    labels, ranks = _coded(data)
    image = ranks[None].to(torch.float32)
    return lambda points: labels[_read(image, points, "nearest")[0].long()]


def _vote(data: Tensor) -> Reader:
    """Per voxel the label whose indicator, interpolated linearly, is largest.

    Most voxels lie inside one label. There the interpolated ranks have next to no variance, and their mean
    is the answer: with a variance below 1/8 one rank holds more than half of the weight (Chebyshev), and is
    the one nearest to the mean. Only the other voxels are put to the vote.
    """
    labels, ranks = _coded(data)
    # E[r^2] - E[r]^2 in float32 is good to about 1e-7 r^2: with more labels every voxel has to vote
    screened = len(labels) <= 300
    moments = torch.stack([ranks, ranks * ranks]).to(torch.float32) if screened else None
    boxes = _boxes(ranks, len(labels))

    def read(points: Tensor) -> Tensor:
        if moments is None:
            return labels[_ballot(ranks, boxes, points.flatten(1)).view(points.shape[1:])]
        mean, square = _read(moments, points, "bilinear")
        mixed = (square - mean.square()) > 0.05
        winner = mean.round().long()
        if bool(mixed.any()):
            winner[mixed] = _ballot(ranks, boxes, points[:, mixed])
        return labels[winner]

    return read


def _boxes(ranks: Tensor, count: int) -> Tensor:
    """(count, ndim, 2): first and last index of every rank along every axis."""
    boxes = torch.zeros(count, ranks.ndim, 2, dtype=torch.long)
    for axis, size in enumerate(ranks.shape):
        seen = torch.stack(
            [torch.bincount(ranks.select(axis, i).flatten(), minlength=count) > 0 for i in range(size)], dim=1
        ).to("cpu", torch.uint8)
        boxes[:, axis, 0] = seen.argmax(1)
        boxes[:, axis, 1] = size - 1 - seen.flip(1).argmax(1)
    return boxes


def _ballot(ranks: Tensor, boxes: Tensor, points: Tensor) -> Tensor:
    """The rank (n,) with the largest interpolated indicator at points (ndim, n)."""
    best = torch.zeros_like(points[0])
    winner = torch.zeros_like(best, dtype=torch.long)
    size = torch.tensor(ranks.shape)[:, None]
    clamped = torch.minimum(points.clamp(min=0), (size - 1).to(points))
    for rank, box in enumerate(boxes):
        first, last = (box[:, 0] - 1).clamp(min=0), torch.minimum(box[:, 1:] + 1, size - 1)[:, 0]
        near = ((clamped >= first.to(points)[:, None]) & (clamped <= last.to(points)[:, None])).all(0)
        near = near.nonzero()[:, 0]
        if not len(near):
            continue
        corner = ranks[tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))]
        local = clamped[:, near] - first.to(points)[:, None]
        score = sample_points((corner == rank).to(torch.float32)[None], local)[0]
        better = score > best[near] + 1e-6  # ties, also those that rounding hides, go to the lowest label
        winner[near[better]] = rank
        best[near[better]] = score[better]
    return winner
