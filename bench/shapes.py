"""Triangles and circles in 2-D: ICON's and NePhi's synthetic pairs, drawn anew from a seed."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from neuralreg.training.data import Source, Subject, Subjects

EDGE = 1 / 40  # of the image: ICON's edges, soft enough that a map two pixels off is pulled to its place


def shapes(count: int, size: int = 128, seed: int = 0) -> Subjects:
    """``count`` subjects of (size, size) pixels, triangles and circles in turn, of label 1 on background 0."""
    names = [f"{kind_of(place)}-{place:04d}" for place in range(count)]
    shape = (size, size)
    return Subjects([Source(n, partial(draw, n, k, size, seed), shape) for k, n in enumerate(names)])


def kind_of(place: int) -> str:
    """Every second subject is a circle."""
    return "circle" if place % 2 else "triangle"


def draw(name: str, place: int, size: int, seed: int) -> Subject:
    """One shape: centre near the middle, radius 0.2 to 0.35 of the image, the triangle turned at random."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
    shift, radius, turn = torch.rand(3, generator=generator).tolist(), 0.0, 0.0
    centre = [(0.42 + 0.16 * s) * (size - 1) for s in shift[:2]]
    radius = (0.2 + 0.15 * shift[2]) * size
    turn = 2 * math.pi * float(torch.rand((), generator=generator))
    axis = torch.arange(size, dtype=torch.float32)
    x = torch.stack(torch.meshgrid(axis - centre[0], axis - centre[1], indexing="ij"))
    depth = radius - x.square().sum(0).sqrt() if kind_of(place) == "circle" else in_triangle(x, radius, turn)
    image = 0.5 + 0.5 * torch.tanh(depth / (EDGE * size))
    return Subject(name, image[None], (depth > 0).long(), (1.0, 1.0))


def in_triangle(x: Tensor, radius: float, turn: float) -> Tensor:
    """Distance inside an equilateral triangle of a circumscribed circle's radius, at points x (2, ...)."""
    depth = torch.full_like(x[0], math.inf)
    for corner in range(3):
        angle = turn + 2 * math.pi * corner / 3
        outward = x[0] * math.cos(angle) + x[1] * math.sin(angle)
        depth = torch.minimum(depth, radius / 2 - outward)
    return depth
