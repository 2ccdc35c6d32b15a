"""Box sums along one axis in Triton: the tile that a program works on.

A tile holds blocks of `window` outputs. The window that begins at place r of a block is the end of that block from
r on plus the first r values behind it, so two scans within blocks give all windows of the block (van Herk 1992,
Gil and Werman 1993). Nothing is ever subtracted: the cost does not depend on the window, windows of zeros sum to
exactly 0, and no error is carried along the axis, as it is with running sums.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def box_tile(
    outer, blocks, n_in, n_out, inner, columns, first, window,
    BO: tl.constexpr, W2: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Offsets of the values of a block (`near`), of those behind it (`far`) and of the sums (`to`), each with
    what of it exists. Tensors are (outer, n, inner), row by row; output i sums n_in[first + i :][:window]."""
    row = tl.program_id(0) // columns * BO + tl.arange(0, BO)[:, None, None]
    lane = tl.arange(0, W2)[None, :, None]
    column = tl.program_id(0) % columns * BI + tl.arange(0, BI)[None, None, :]
    place = row % blocks * window + lane
    line = (row // blocks).to(tl.int64)
    exists = (row < outer * blocks) & (lane < window) & (column < inner)
    start = first + place
    last = start + window - 1
    near = (line * n_in + start) * inner + column
    far = (line * n_in + last) * inner + column
    to = (line * n_out + place) * inner + column
    near_exists = exists & (start >= 0) & (start < n_in)
    far_exists = exists & (lane > 0) & (last >= 0) & (last < n_in)
    return near, near_exists, far, far_exists, to, exists & (place < n_out)


@triton.jit
def box_sum(near, far):
    """Window sums of a tile from the values of its blocks and of those behind them; what does not exist is 0."""
    return tl.cumsum(near, 1, reverse=True) + tl.cumsum(far, 1)


@triton.jit
def wide(pointer, offsets, exists):
    """Values as float64, 0 where they do not exist. By way of float32, which holds every half type."""
    values = tl.load(pointer + offsets, mask=exists, other=0.0)
    if values.dtype != tl.float64:
        values = values.to(tl.float32)
    return values.to(tl.float64)


@triton.jit
def narrow(pointer, offsets, values, exists):
    """Stores values in the pointer's type. By way of float32 to half types, as they are read."""
    if pointer.dtype.element_ty != tl.float64:
        values = values.to(tl.float32)
    tl.store(pointer + offsets, values.to(pointer.dtype.element_ty), mask=exists)
