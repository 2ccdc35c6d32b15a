"""Boxes of voxels: parts of a grid, and which of them is read."""

from __future__ import annotations

import numpy as np

Box = tuple[tuple[int, int], ...]  # first voxel and the one behind the last, along every axis


def whole(grid: tuple[int, ...]) -> Box:
    """All voxels of a grid."""
    return tuple((0, n) for n in grid)


def ends_of(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last voxel (ndim,)."""
    both = np.array(box, dtype=np.float64)
    return both[:, 0], both[:, 1] - 1


def longest_axis(grid: tuple[int, ...]) -> int:
    """The axis with the most voxels; the last of several."""
    return max(range(len(grid)), key=lambda axis: (grid[axis], axis))


def with_rows(box: Box, axis: int, rows: tuple[int, int]) -> Box:
    """The box with other rows along an axis."""
    return (*box[:axis], rows, *box[axis + 1 :])


def shape_of(box: Box) -> tuple[int, ...]:
    """Voxels along every axis."""
    return tuple(stop - start for start, stop in box)


def origin_of(box: Box) -> tuple[int, ...]:
    """The first voxel."""
    return tuple(start for start, _ in box)


def slices(box: Box) -> tuple[slice, ...]:
    """The box as an index."""
    return tuple(slice(start, stop) for start, stop in box)


def common(a: Box, b: Box) -> Box:
    """The voxels that are in both; an axis on which there are none has a length of 0."""
    both = [(max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True)]
    return tuple((start, max(start, stop)) for start, stop in both)


def contains(outer: Box, inner: Box) -> bool:
    """Whether every voxel of one box is in the other."""
    return all(a[0] <= b[0] and b[1] <= a[1] for a, b in zip(outer, inner, strict=True))


def within(box: Box, outer: Box) -> Box:
    """A box in the indices of another one."""
    return tuple((a - o, b - o) for (a, b), (o, _) in zip(box, outer, strict=True))


def aligned(box: Box, grid: tuple[int, ...], block: int) -> Box:
    """The box grown to whole blocks of ``block`` voxels, which begin at voxel 0 of the grid.

    Means over blocks of the box are then means over the blocks of the grid. What is left over at the grid's end is no
    block; a box that lies in it alone takes the last block, too.
    """
    grown = []
    for (start, stop), n in zip(box, grid, strict=True):
        start = min(start, max(0, n // block - 1) * block if n >= block else 0)
        grown.append((start // block * block, min(n, -(-stop // block) * block)))
    return tuple(grown)


def readable(low: np.ndarray, high: np.ndarray, grid: tuple[int, ...]) -> Box:
    """The voxels that linear interpolation reads at positions from ``low`` to ``high``, at least one an axis.

    Positions beyond the grid read its outermost voxel or nothing.
    """
    box = []
    for a, b, n in zip(low, high, grid, strict=True):
        start = int(np.clip(np.floor(a), 0, n - 1))
        box.append((start, int(np.clip(np.floor(b) + 2, start + 1, n))))
    return tuple(box)


def image_of(affine: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of what an affine (ndim, ndim + 1) makes of the points from ``low`` to ``high`` (ndim,)."""
    linear, shift = affine[:, :-1], affine[:, -1]
    ends = linear * low, linear * high
    return np.minimum(*ends).sum(1) + shift, np.maximum(*ends).sum(1) + shift


def hull(a: Box, b: Box) -> Box:
    """The smallest box around both."""
    return tuple((min(x[0], y[0]), max(x[1], y[1])) for x, y in zip(a, b, strict=True))
