"""Squared first and second differences in Triton, and their gradients, which gather.

Channels are alike, so fields are (n, n0, n1, n2). H are the inverse spacings. The weights of the squared differences
hold how many there are, which a kernel gets as whole numbers: as floats Triton would round them to float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_lattice_access import elements, number, read, whole, write
from .triton_lattice_kernels import voxel_of


@triton.jit
def share(count, FACTOR: tl.constexpr):
    """FACTOR / count, 0 where there is nothing."""
    n = (tl.full((), 0, tl.int64) + count).to(tl.float64)
    return tl.where(n > 0, FACTOR / tl.maximum(n, 1.0), 0.0)


@triton.jit
def squared(difference):
    wide = difference.to(tl.float64)
    return wide * wide


@triton.jit
def first(u, at, here, stride, i, n, exists, ACC: tl.constexpr):
    """u[i + 1] - u[i] along an axis, 0 where it does not exist."""
    there = exists & (i + 1 < n)
    return tl.where(there, read(u, at + stride, there, ACC) - here, 0.0)


@triton.jit
def diffusion_forward_kernel(
    u, sums, total, n0, n1, n2, count0, count1, count2, W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr,
    TILE: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """W are the factors of the weights: 1 / (axes spacing^2)."""
    n0, n1, n2 = whole(n0), whole(n1), whole(n2)
    at = elements(tl.program_id(0), TILE, WIDE)
    exists = at < total
    z, y, x, _ = voxel_of(at, n0, n1, n2)
    here = read(u, at, exists, ACC)
    value = share(count2, W2) * squared(first(u, at, here, 1, x, n2, exists, ACC))
    value += share(count1, W1) * squared(first(u, at, here, n2, y, n1, exists, ACC))
    value += share(count0, W0) * squared(first(u, at, here, n1 * n2, z, n0, exists, ACC))
    tl.store(sums + tl.program_id(0), tl.sum(value))


@triton.jit
def laplacian(u, at, here, stride, i, n, exists, ACC: tl.constexpr):
    """Half the derivative of the squared differences on either side of a voxel."""
    low, high = exists & (i > 0), exists & (i + 1 < n)
    before = tl.where(low, here - read(u, at - stride, low, ACC), 0.0)
    return before - tl.where(high, read(u, at + stride, high, ACC) - here, 0.0)


@triton.jit
def diffusion_gradient(u, at, here, z, y, x, n0, n1, n2, w0, w1, w2, exists, ACC: tl.constexpr):
    """Of the sum of w times squared differences, halved."""
    gradient = w2 * laplacian(u, at, here, 1, x, n2, exists, ACC)
    gradient += w1 * laplacian(u, at, here, n2, y, n1, exists, ACC)
    return gradient + w0 * laplacian(u, at, here, n1 * n2, z, n0, exists, ACC)


@triton.jit
def diffusion_backward_kernel(
    u, grad, out, total, n0, n1, n2, count0, count1, count2, W0: tl.constexpr, W1: tl.constexpr,
    W2: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n0, n1, n2 = whole(n0), whole(n1), whole(n2)
    at = elements(tl.program_id(0), TILE, WIDE)
    exists = at < total
    z, y, x, _ = voxel_of(at, n0, n1, n2)
    twice = 2.0 * number(grad, tl.float64)
    w0, w1, w2 = twice * share(count0, W0), twice * share(count1, W1), twice * share(count2, W2)
    here = read(u, at, exists, ACC)
    gradient = diffusion_gradient(
        u, at, here, z, y, x, n0, n1, n2, w0.to(ACC), w1.to(ACC), w2.to(ACC), exists, ACC
    )
    write(out, at, gradient, exists)


@triton.jit
def second(u, at, stride, i, n, exists, ACC: tl.constexpr):
    """The second difference along an axis in the middle of which i stands, 0 where it does not exist."""
    there = exists & (i > 0) & (i + 1 < n)
    middle = read(u, at, there, ACC)
    before, after = read(u, at - stride, there, ACC), read(u, at + stride, there, ACC)
    return (after - middle) - (middle - before)


@triton.jit
def mixed(
    u, at, along, across, i, n, j, m, SIDE: tl.constexpr, OTHER: tl.constexpr, exists, ACC: tl.constexpr
):
    """The mixed difference in the cell on one side of (i, j), with the sign that u[i, j] is added."""
    there = exists & (i + SIDE >= 0) & (i + SIDE < n) & (j + OTHER >= 0) & (j + OTHER < m)
    one = read(u, at, there, ACC) - read(u, at + SIDE * along, there, ACC)
    moved = at + OTHER * across
    return one - (read(u, moved, there, ACC) - read(u, moved + SIDE * along, there, ACC))


@triton.jit
def bending_forward_kernel(
    u, sums, total, n0, n1, n2, pure0, pure1, pure2, mixed0, mixed1, mixed2,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, M0: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr,
    TILE: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """`pure` and P along the axes, `mixed` and M across the two others: numbers of differences, and factors."""
    n0, n1, n2 = whole(n0), whole(n1), whole(n2)
    at = elements(tl.program_id(0), TILE, WIDE)
    exists = at < total
    z, y, x, _ = voxel_of(at, n0, n1, n2)
    plane = n1 * n2
    value = share(pure2, P2) * squared(second(u, at, 1, x, n2, exists, ACC))
    value += share(pure1, P1) * squared(second(u, at, n2, y, n1, exists, ACC))
    value += share(pure0, P0) * squared(second(u, at, plane, z, n0, exists, ACC))
    value += share(mixed0, M0) * squared(mixed(u, at, 1, n2, x, n2, y, n1, 1, 1, exists, ACC))
    value += share(mixed1, M1) * squared(mixed(u, at, 1, plane, x, n2, z, n0, 1, 1, exists, ACC))
    value += share(mixed2, M2) * squared(mixed(u, at, n2, plane, y, n1, z, n0, 1, 1, exists, ACC))
    tl.store(sums + tl.program_id(0), tl.sum(value))


@triton.jit
def second_adjoint(u, at, stride, i, n, exists, ACC: tl.constexpr):
    gradient = -2.0 * second(u, at, stride, i, n, exists, ACC)
    gradient += second(u, at - stride, stride, i - 1, n, exists & (i > 0), ACC)
    return gradient + second(u, at + stride, stride, i + 1, n, exists, ACC)


@triton.jit
def mixed_adjoint(u, at, along, across, i, n, j, m, exists, ACC: tl.constexpr):
    gradient = mixed(u, at, along, across, i, n, j, m, -1, -1, exists, ACC)
    gradient += mixed(u, at, along, across, i, n, j, m, 1, -1, exists, ACC)
    gradient += mixed(u, at, along, across, i, n, j, m, -1, 1, exists, ACC)
    return gradient + mixed(u, at, along, across, i, n, j, m, 1, 1, exists, ACC)


@triton.jit
def bending_backward_kernel(
    u, grad, out, total, n0, n1, n2, pure0, pure1, pure2, mixed0, mixed1, mixed2,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, M0: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr,
    TILE: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n0, n1, n2 = whole(n0), whole(n1), whole(n2)
    at = elements(tl.program_id(0), TILE, WIDE)
    exists = at < total
    z, y, x, _ = voxel_of(at, n0, n1, n2)
    twice = 2.0 * number(grad, tl.float64)
    plane = n1 * n2
    value = (twice * share(pure2, P2)).to(ACC) * second_adjoint(u, at, 1, x, n2, exists, ACC)
    value += (twice * share(pure1, P1)).to(ACC) * second_adjoint(u, at, n2, y, n1, exists, ACC)
    value += (twice * share(pure0, P0)).to(ACC) * second_adjoint(u, at, plane, z, n0, exists, ACC)
    value += (twice * share(mixed0, M0)).to(ACC) * mixed_adjoint(u, at, 1, n2, x, n2, y, n1, exists, ACC)
    value += (twice * share(mixed1, M1)).to(ACC) * mixed_adjoint(u, at, 1, plane, x, n2, z, n0, exists, ACC)
    value += (twice * share(mixed2, M2)).to(ACC) * mixed_adjoint(u, at, n2, plane, y, n1, z, n0, exists, ACC)
    write(out, at, value, exists)
