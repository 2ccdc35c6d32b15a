"""Sampling written point by point in numpy, and what the tests of sampling share."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .common import On, leaf


def reflect(p: float, low: float, high: float) -> float:
    """p mirrored at low and high until it lies between them."""
    if high <= low:
        return low
    while not low <= p <= high:
        p = 2 * low - p if p < low else 2 * high - p
    return p


def sample_one(
    image: np.ndarray, point: list[float], mode: str, padding_mode: str, edge: float
) -> np.ndarray:
    """Channels of image (C, *in) at one point, in voxels; the image ends ``edge`` beyond the last centre."""
    sizes = image.shape[1:]
    p = list(point)
    if padding_mode == "reflection":
        p = [reflect(x, -edge, n - 1 + edge) for x, n in zip(p, sizes, strict=True)]
    if padding_mode != "zeros":
        p = [min(max(x, 0), n - 1) for x, n in zip(p, sizes, strict=True)]
    if mode == "nearest":
        corners = [(tuple(int(np.rint(x)) for x in p), 1.0)]
    else:
        base = [math.floor(x) for x in p]
        corners = []
        for step in itertools.product((0, 1), repeat=len(p)):
            index = tuple(b + s for b, s in zip(base, step, strict=True))
            weight = math.prod(1 - abs(x - i) for x, i in zip(p, index, strict=True))
            corners.append((index, weight))
    value = np.zeros(image.shape[0])
    for index, weight in corners:
        if all(0 <= i < n for i, n in zip(index, sizes, strict=True)):
            value += weight * image[(slice(None), *index)]
    return value


def sample(image: Tensor, points: Tensor, mode: str, padding_mode: str, edge: float = 0.0) -> Tensor:
    """image (B, C, *in) at points (B, ndim, *out), in voxels."""
    out = np.zeros([*image.shape[:2], *points.shape[2:]])
    for place in np.ndindex(points.shape[0], *points.shape[2:]):
        b, *index = place
        p = points[(b, slice(None), *index)].double().tolist()
        out[(b, slice(None), *index)] = sample_one(image[b].double().numpy(), p, mode, padding_mode, edge)
    return torch.from_numpy(out)


def unnormalise(grid: Tensor, sizes: list[int], align_corners: bool) -> Tensor:
    """grid (B, *out, ndim) in [-1, 1], x first, to points (B, ndim, *out) in voxels, axis order."""
    points = []
    for g, n in zip(reversed(grid.double().unbind(-1)), sizes, strict=True):
        points.append((g + 1) / 2 * (n - 1) if align_corners else ((g + 1) * n - 1) / 2)
    return torch.stack(points, 1)


def identity(sizes: list[int]) -> Tensor:
    return torch.stack(torch.meshgrid([torch.arange(n).double() for n in sizes], indexing="ij"))


def off_lattice(shape: list[int], sizes: list[int], reach: int) -> Tensor:
    """Points (B, ndim, *out) up to ``reach`` voxels outside, at least 0.1 voxel from every lattice plane."""
    points = [torch.randint(-reach, n + reach, shape) + 0.1 + 0.3 * torch.rand(shape) for n in sizes]
    points = [p + 0.5 * (torch.rand(shape) < 0.5) for p in points]  # .1 to .4 or .6 to .9: no ties either
    return torch.stack(points, 1).double()


def derivatives(
    on: On, function: Any, image: Tensor, where: Tensor, *args: Any, **options: Any
) -> list[Tensor]:
    """The value, and the gradients of a weighted sum of it to image and coordinates."""
    i, w = leaf(image), leaf(where)
    value = on(function, i, w, *args, **options)
    weights = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value)
    (value * weights.to(value.dtype)).sum().backward()
    return [value.detach(), i.grad, w.grad]
