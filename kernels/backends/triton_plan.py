"""How windowed sums over a volume become launches: axis by axis, slab of planes by slab of planes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import registry

# Elements of a tile, more where the window is longer. The interpreter pays by the program, not by the element.
TILE = 16384 if registry.interpreted else 1024


class Axis(NamedTuple):
    """Windows along one axis: output i sums inputs first + i .. first + i + window - 1; outside is 0."""

    window: int
    first: int
    n_in: int
    n_out: int

    def adjoint(self) -> Axis:
        return Axis(self.window, 1 - self.window - self.first, self.n_out, self.n_in)


def axes_of(spatial: list[int], window: list[int], padding: str, cut: bool = True) -> list[Axis]:
    """z, y and x; a plane has one z. With `cut`, windows end where they leave the volume for all outputs."""
    axes = [Axis(1, 0, 1, 1)] * (3 - len(spatial))
    for n, w in zip(spatial, window, strict=True):
        if padding == "valid":
            axes.append(Axis(w, 0, n, n - w + 1))
        else:
            before, after = (w - 1) // 2, w // 2
            if cut:
                before, after = min(before, n - 1), min(after, n - 1)
            axes.append(Axis(before + after + 1, -before, n, n))
    return axes


class Slab(NamedTuple):
    """Output planes z0 .. z1 - 1 of channels c0 .. c1 - 1; more than one channel only with all planes."""

    c0: int
    c1: int
    z0: int
    z1: int

    @property
    def planes(self) -> int:
        return (self.c1 - self.c0) * (self.z1 - self.z0)


def slabs(whole: Slab, block: int, plane_bytes: int, budget: int) -> Iterator[Slab]:
    """Cuts `whole` so that `plane_bytes` for each of a slab's planes stay within the budget, if possible."""
    planes_all = whole.z1 - whole.z0
    planes = max(1, budget // plane_bytes)
    if planes >= planes_all:
        step = planes // planes_all
        for c in range(whole.c0, whole.c1, step):
            yield Slab(c, min(whole.c1, c + step), whole.z0, whole.z1)
        return
    if planes > block:
        planes -= planes % block  # a block of windows that is cut costs as much as a whole one
    for c in range(whole.c0, whole.c1):
        for z in range(whole.z0, whole.z1, planes):
            yield Slab(c, c + 1, z, min(whole.z1, z + planes))


@dataclass(frozen=True)
class Pass:
    """One launch: box sums of a slab along one axis, on tensors (outer, n, inner)."""

    axis: int
    outer: int
    n_in: int
    n_out: int
    inner: int
    first: int
    window: int
    block: int  # outputs along the axis that stand in one tile
    is_first: bool
    is_last: bool

    @property
    def tile(self) -> tuple[int, int, int]:
        lanes = power_of_two(self.block)
        columns = min(power_of_two(self.inner), 128, max(8, TILE // lanes))
        rows = power_of_two(self.outer * self.blocks)
        return min(rows, max(1, TILE // (lanes * columns))), lanes, columns

    @property
    def blocks(self) -> int:
        return parts(self.n_out, self.block)

    @property
    def size(self) -> int:
        """Elements that it puts out."""
        return self.outer * self.n_out * self.inner

    @property
    def programs(self) -> int:
        rows, _, columns = self.tile
        return parts(self.outer * self.blocks, rows) * parts(self.inner, columns)

    def launch(self, kernel: Any, *args: Any, **constants: Any) -> None:
        """Runs the kernel; its last arguments are those of the tile, then BO, W2, BI, FIRST and LAST."""
        rows, lanes, columns = self.tile
        shape = (self.outer, self.blocks, self.n_in, self.n_out, self.inner, parts(self.inner, columns))
        warps = min(16, max(1, rows * lanes * columns // 128))  # four elements a thread: more of them spill
        kernel[(self.programs,)](
            *args,
            *shape,
            self.first,
            self.window,
            BO=rows,
            W2=lanes,
            BI=columns,
            FIRST=self.is_first,
            LAST=self.is_last,
            num_warps=warps,
            **constants,
        )


def passes(axes: list[Axis], slab: Slab, block: int | None = None) -> list[Pass]:
    """The launches for a slab, z first: axes with a window of 1 need none, but one pass there is always.

    Tiles hold `block` outputs along the axis, or as many as the window has voxels.
    """
    run = [a for a in range(3) if axes[a].window > 1] or [2]
    sizes = [axes[0].n_in if 0 in run else slab.z1 - slab.z0, axes[1].n_in, axes[2].n_in]
    plan = []
    for a in run:
        axis = axes[a]
        if a == 0:
            axis = axis._replace(first=axis.first + slab.z0, n_out=slab.z1 - slab.z0)
        outer, inner = (slab.c1 - slab.c0) * math.prod(sizes[:a]), math.prod(sizes[a + 1 :])
        shape = (outer, sizes[a], axis.n_out, inner, axis.first, axis.window)
        plan.append(Pass(a, *shape, axis.window if block is None else min(block, axis.n_out), False, False))
        sizes[a] = axis.n_out
    plan[0] = replace(plan[0], is_first=True)
    plan[-1] = replace(plan[-1], is_last=True)
    return plan


def between(plans: list[list[Pass]], fields: int, device: torch.device) -> list[Tensor]:
    """Room for what lies behind each pass but the last, in float64, enough for every slab's plan."""
    sizes = [max(plan[i].size for plan in plans) for i in range(len(plans[0]) - 1)]
    return [torch.empty(fields * size, dtype=torch.float64, device=device) for size in sizes]


def plane_bytes(axes: list[Axis], fields: int) -> int:
    """What one plane of a slab needs between the launches."""
    return max(1, 8 * fields * sum(p.size for p in passes(axes, Slab(0, 1, 0, 1))[:-1]))


def start_of(slab: Slab, plane: int, planes: int, first_plane: int = 0, first_channel: int = 0) -> int:
    """Offset of a slab in a tensor of `planes` planes a channel, which begins at this plane and channel."""
    return ((slab.c0 - first_channel) * planes + slab.z0 - first_plane) * plane


def tail(tensor: Tensor, offset: int) -> Tensor:
    return tensor.view(-1)[offset:]


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the tensor's device; Triton takes torch's current stream there."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << (n - 1).bit_length() if n > 1 else 1


def parts(n: int, size: int) -> int:
    return -(-n // size)
