"""A rank's slab of a pair: its rows of every lattice, and the parts of the images that these read.

The lattice of a stage is cut into ranges of rows along one axis, one a rank. A rank asks the field at its own rows and
at a halo beside them, which windows and differences reach into, and counts its own rows alone. Every mean is a sum over
all ranks divided by a count over all ranks, so that the loss is that of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from neuralreg.boxes import Box, aligned, contains, ends_of, image_of, origin_of, readable
from neuralreg.losses import Mean
from neuralreg.pair import Pair
from neuralreg.samplers import Lattice, Sample
from neuralreg.sharded.ranks import Together
from neuralreg.sharded.volume import Volume


@dataclass(frozen=True)
class Rows:
    """Rows of a lattice along one axis: ``first`` to ``stop`` (exclusive) with the halo, of which ``own`` count."""

    ranks: Together
    axis: int
    count: int  # of the whole lattice
    first: int
    stop: int
    own: tuple[int, int]

    def of_lattice(self, lattice: Lattice) -> Lattice:
        """These rows of the whole lattice."""
        shape = list(lattice.shape)
        shape[self.axis] = self.stop - self.first
        step = torch.zeros_like(lattice.offset)
        step[:, self.axis] = lattice.stride * self.first
        return replace(lattice, shape=tuple(shape), offset=lattice.offset + step)

    def own_of(self, values: Tensor) -> Tensor:
        """The own rows of a map (B, C, *spatial) over these rows.

        A map may end early, as that of windows that fit or of differences does: row i of it belongs to row i here.
        """
        length = values.shape[2 + self.axis]
        start = min(self.own[0] - self.first, length)
        return values.narrow(2 + self.axis, start, max(0, min(self.own[1] - self.first, length) - start))

    def mean(self, values: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
        """:func:`neuralreg.losses.mean_over` of the whole lattice, of which this rank has these rows."""
        own = self.own_of(values)
        weight = torch.ones_like(own) if mask is None else self.own_of(mask).to(own.dtype).expand_as(own)
        if dropout:  # drawn for the whole lattice, as one process does it, so that all ranks draw alike
            shape = list(values.shape)
            shape[2 + self.axis] += self.count - (self.stop - self.first)
            kept = values.new_empty(shape).bernoulli_(1 - dropout)
            start = min(self.own[0], shape[2 + self.axis])
            weight = weight * kept.narrow(2 + self.axis, start, own.shape[2 + self.axis])
        sums = [(own * weight).sum(dtype=torch.float64), weight.sum(dtype=torch.float64)]
        total, count = self.ranks.total(torch.stack(sums))
        return (total / count.detach().clamp(min=1)).to(values.dtype)


class Slab:
    """A pair of which this rank holds a part: the :class:`neuralreg.pair.Images` of a fit.

    Args:
        ranks: the processes that share the pair.
        fixed, moving: the images, their ranges found; ``masks`` those of both.
        affine: (ndim, ndim + 1) float64, fixed voxel to moving voxel.
        axis: along which the rows are shared out.
        halo: rows of a lattice that a rank's windows and differences reach into, on both sides.
        lattices: shape, stride and scale of every lattice of the fit.
        margin: (ndim,) voxels that a point is expected to move at most. Where one moves farther, the rank reads a
            larger part of the moving image, and the margin grows.
    """

    def __init__(
        self,
        ranks: Together,
        fixed: Volume,
        moving: Volume,
        masks: tuple[Volume | None, Volume | None],
        affine: np.ndarray,
        axis: int,
        halo: int,
        lattices: list[tuple[tuple[int, ...], int, int]],
        margin: np.ndarray,
    ) -> None:
        self.ranks, self.fixed, self.moving, self.masks = ranks, fixed, moving, masks
        self.affine, self.axis, self.halo, self.margin = affine, axis, halo, margin
        self.device, self.grid, self.ndim = ranks.device, fixed.geometry.shape, fixed.geometry.ndim
        self.block = int(np.lcm.reduce([scale for _, _, scale in lattices]))
        self.largest_scale = max(scale for _, _, scale in lattices)
        self.fixed_box = self._fixed_box(lattices)
        self.readings = 0
        self._parts: list[Tensor | None] = []
        self._read_fixed()
        self._read_moving(-margin, margin)

    def rows(self, shape: tuple[int, ...]) -> Rows:
        """This rank's rows of a lattice."""
        count = shape[self.axis]
        own = self.ranks.mine(count)
        first, stop = max(0, own.start - self.halo), min(count, own.stop + self.halo)
        return Rows(self.ranks, self.axis, count, first, stop, (own.start, own.stop))

    def shrink(self, factor: int) -> Stage:
        """The slab with every ``factor`` voxels of an axis averaged into one, as :meth:`neuralreg.pair.Pair.shrink`."""
        return Stage(self, factor)

    def gather(self, parameters: Sequence[Tensor]) -> None:
        """Sums the gradients over the ranks."""
        self.ranks.sum_gradients(parameters)

    def hold(self, low: np.ndarray, high: np.ndarray) -> None:
        """Makes sure that what fixed voxels from ``low`` to ``high`` (ndim,) read, moved as they are, is held."""
        if not contains(self.moving_box, self._reached(low, high)):
            first, last = ends_of(self.fixed_box)
            moved = np.maximum(np.maximum(first - low, high - last), 0)
            self.margin = np.maximum(2 * self.margin, 1.25 * moved)
            self._read_moving(np.minimum(low - first, -self.margin), np.maximum(high - last, self.margin))

    def pair(self) -> Pair:
        """The parts of the images that are held, as a pair of their own."""
        fixed, moving, fixed_mask, moving_mask = self._parts
        assert fixed is not None
        assert moving is not None
        shift = self.affine[:, :-1] @ origin_of(self.fixed_box) + self.affine[:, -1]
        affine = np.concatenate([self.affine[:, :-1], (shift - origin_of(self.moving_box))[:, None]], 1)
        return Pair(fixed, moving, torch.from_numpy(affine).float().to(self.device), fixed_mask, moving_mask)

    def _fixed_box(self, lattices: list[tuple[tuple[int, ...], int, int]]) -> Box:
        """The voxels that the rows of all lattices read, whatever their offset."""
        first, last = self.grid[self.axis], 0
        for shape, stride, scale in lattices:
            rows = self.rows(shape)
            first = min(first, rows.first * stride * scale)
            # The last rank reads to the end: what a stride leaves over is where offsets put its last rows.
            end = rows.stop * stride * scale if rows.stop < rows.count else self.grid[self.axis]
            last = max(last, min(end, self.grid[self.axis]))
        box = [(0, n) for n in self.grid]
        box[self.axis] = (first, last)
        return aligned(tuple(box), self.grid, self.block)

    def _reached(self, low: np.ndarray, high: np.ndarray) -> Box:
        """The moving voxels that fixed positions read, at any scale."""
        moved = image_of(self.affine, low, high)
        # The two voxels of a shrunken image beside a position end within that.
        room = 1.5 * self.largest_scale
        shape = self.moving.geometry.shape
        return aligned(readable(moved[0] - room, moved[1] + room, shape), shape, self.block)

    def _read_fixed(self) -> None:
        mask = self.masks[0]
        self._parts = [
            self.fixed.scaled(self.fixed_box, self.device),
            None,
            None if mask is None else mask.inside(self.fixed_box, self.device),
            None,
        ]

    def _read_moving(self, least: np.ndarray, most: np.ndarray) -> None:
        """Reads what the slab's voxels reach with displacements from ``least`` to ``most`` (ndim,)."""
        low, high = ends_of(self.fixed_box)
        self._parts[1] = self._parts[3] = None  # the old part goes before the new one comes
        self.readings += 1
        self.moving_box = self._reached(low + least, high + most)
        self._parts[1] = self.moving.scaled(self.moving_box, self.device)
        mask = self.masks[1]
        self._parts[3] = None if mask is None else mask.inside(self.moving_box, self.device)


class Stage:
    """A slab at one scale: what is :class:`neuralreg.pair.Shown` to a fit."""

    def __init__(self, slab: Slab, scale: int) -> None:
        self.slab, self.scale = slab, scale
        self.grid, self.device = slab.grid, slab.device
        self._pair: tuple[int, Pair] | None = None

    def pair(self) -> Pair:
        """The shrunken pair, made anew after the slab has read anew."""
        if self._pair is None or self._pair[0] != self.slab.readings:
            self._pair = None
            self._pair = self.slab.readings, self.slab.pair().shrink(self.scale)
        return self._pair[1]

    def part(self, sample: Sample) -> tuple[Sample, Mean]:
        """This rank's rows of a lattice."""
        assert isinstance(sample, Lattice)
        rows = self.slab.rows(sample.shape)
        return rows.of_lattice(sample), rows.mean

    def held(self, sample: Sample, displacement: Tensor) -> tuple[Pair, Sample]:
        """The parts of the images, which are read anew where the displacement leads out of them."""
        assert isinstance(sample, Lattice)
        self._hold(sample, displacement)
        return self.pair(), self._local(sample)

    def _hold(self, lattice: Lattice, displacement: Tensor) -> None:
        """Makes sure that the part of the moving image is held that a lattice reads, moved by (1, ndim, *shape).

        The bounds of the displacement go to the host, which on a GPU waits for it.
        """
        ends = torch.stack(torch.aminmax(displacement.detach()[0].flatten(1), dim=1))
        factor = np.minimum(self.scale, self.grid)
        both = torch.cat([ends, lattice.offset.to(ends)]).cpu().numpy().astype(np.float64)
        offset, step = both[2], lattice.stride * factor
        first = factor * offset + (factor - 1) / 2
        last = first + step * (np.array(lattice.shape) - 1)
        self.slab.hold(first + step * both[0], last + step * both[1])

    def _local(self, lattice: Lattice) -> Lattice:
        """A lattice in the voxels of the part of the fixed image that is held."""
        factor = np.minimum(self.scale, self.grid)
        origin = torch.tensor(np.array(origin_of(self.slab.fixed_box)) // factor).to(lattice.offset)
        return replace(lattice, offset=lattice.offset - origin)
