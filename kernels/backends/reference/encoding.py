"""Encodings of coordinates, in plain torch."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from neuralreg.kernels.spec import HashGrid

HASH_PRIMES = (1, 2654435761, 805459861)


def fourier_encode(x: Tensor, B: Tensor, scale: float = math.pi) -> Tensor:
    """[sin(scale x B), cos(scale x B)] (Tancik et al. 2020): x (N, ndim), B (ndim, F) give (N, 2 F)."""
    phase = scale * (x @ B)
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def hash_encode(x: Tensor, table: Tensor, spec: HashGrid) -> Tensor:
    """Multi-resolution grid encoding (Mueller et al. 2022): x (N, ndim) gives (N, levels * features).

    A level of R vertices an axis has p = (clamp(x, -1, 1) + 1) / 2 (R - 1), cell = min(floor(p), R - 2), and
    interpolates linearly between the 2^ndim entries at the cell's corners. Corner i is entry (i0 R + i1) R +
    i2 of a dense level, (i0 ^ i1 2654435761 ^ i2 805459861) mod 2^log2_table_size of a hashed one; the levels
    follow each other in ``table`` (entries, features). Outside [-1, 1] the value is the border's and the
    derivative to x is 0; NaN counts as -1.
    """
    ndim = x.shape[1]
    encoded = []
    offset = 0
    for resolution, entries in zip(spec.resolutions, spec.entries(ndim), strict=True):
        vertices, weights = _corners(x, (resolution,) * ndim, spec.interpolation)
        dense = resolution**ndim == entries
        index = _dense(vertices, (resolution,) * ndim) if dense else _hashed(vertices, entries)
        values = table.index_select(0, (offset + index).flatten()).unflatten(0, index.shape)
        encoded.append((weights[..., None] * values).sum(1))
        offset += entries
    return torch.cat(encoded, dim=1)


def volume_encode(x: Tensor, volume: Tensor) -> Tensor:
    """The volume (C, *size) read at x (N, ndim) in [-1, 1], vertices at both ends of an axis: (N, C).

    Linear; outside, the border's value with no derivative to x, as in ``hash_encode``.
    """
    size = tuple(volume.shape[1:])
    vertices, weights = _corners(x, size, "linear")
    index = _dense(vertices, size)
    values = volume.flatten(1).index_select(1, index.flatten()).unflatten(1, index.shape)
    return (weights * values).sum(2).T


def _corners(x: Tensor, size: tuple[int, ...], interpolation: str) -> tuple[Tensor, Tensor]:
    """The corners of the cells that hold the points, (N, 2^ndim, ndim), and their weights (N, 2^ndim)."""
    last = torch.tensor(size, device=x.device) - 1
    unit = (torch.where(x.isnan(), -1.0, x).clamp(-1, 1) + 1) / 2
    p = unit * last
    cell = torch.minimum(p.detach().floor().long(), (last - 1).clamp(min=0))
    upper = (p - cell)[:, None]
    if interpolation == "smoothstep":
        upper = upper * upper * (3 - 2 * upper)
    corners = torch.tensor(list(itertools.product((0, 1), repeat=len(size))), device=x.device)
    weights = functools.reduce(torch.mul, torch.where(corners == 1, upper, 1 - upper).unbind(-1))
    return torch.minimum(cell[:, None] + corners, last), weights


def _dense(vertices: Tensor, size: tuple[int, ...]) -> Tensor:
    index = vertices[..., 0]
    for component, count in zip(vertices.unbind(-1)[1:], size[1:], strict=True):
        index = index * count + component
    return index


def _hashed(vertices: Tensor, entries: int) -> Tensor:
    # entries is a power of two of at most 2^30, so the low bits of 64-bit products are those of 32-bit ones
    index = vertices[..., 0]
    for component, prime in zip(vertices.unbind(-1)[1:], HASH_PRIMES[1:], strict=False):
        index = index ^ component * prime
    return index & (entries - 1)
