"""Jacobians of lattice maps in Triton: determinants, penalties, and their adjoints.

The adjoint gathers: a voxel sums what it gives to the Jacobians of itself and its neighbours, each computed again.
Fields are (items, D, n0, n1, n2); penalties leave one float64 sum and one count a program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_lattice_access import elements, number, read, whole, write


@triton.jit
def voxel_of(element, n0, n1, n2):
    """z, y and x of an element, and the number of its volume."""
    row = element // n2
    plane = row // n1
    return plane % n0, row % n1, element % n2, (plane // n0).to(tl.int64)


@triton.jit
def ends(i, n, step, SCHEME: tl.constexpr):
    """The neighbours whose difference is taken at i, and its factor: at an end the difference that exists."""
    lower, upper = i, i + 1
    if SCHEME == "backward":
        lower, upper = i - 1, i
    if SCHEME == "central":
        lower = i - 1
    lower = tl.minimum(tl.maximum(lower, 0), tl.maximum(n - 2, 0))
    upper = tl.maximum(tl.minimum(upper, n - 1), tl.minimum(n - 1, 1))
    width = tl.maximum(upper - lower, 1).to(step.dtype)
    return lower, upper, tl.where(n > 1, step / width, 0.0)


@triton.jit
def difference(channel, at, lower, upper, stride, factor, exists, ACC: tl.constexpr):
    """(u[upper] - u[lower]) factor, for a neighbour at `at` without its own place on the axis."""
    there = exists & (upper > lower)
    return factor * (
        read(channel, at + upper * stride, there, ACC) - read(channel, at + lower * stride, there, ACC)
    )


@triton.jit
def jacobian_at(
    u, voxels, z, y, x, exists, n0, n1, n2, S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr,
    D: tl.constexpr, SCHEME: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """I + J at a voxel, row by row; with D = 2 the row and the column of z are those of I."""
    one = tl.full(x.shape, 1.0, ACC)
    zero = tl.zeros(x.shape, ACC)
    a, b, c, d, g = one, zero, zero, zero, zero
    slice_ = n1 * n2
    uy, ux = u + (D - 2) * voxels, u + (D - 1) * voxels
    low, high, factor = ends(x, n2, tl.full((), S2, ACC), SCHEME)
    at = z * slice_ + y * n2
    f = difference(uy, at, low, high, 1, factor, exists, ACC)
    i = one + difference(ux, at, low, high, 1, factor, exists, ACC)
    if D == 3:
        c = difference(u, at, low, high, 1, factor, exists, ACC)
    low, high, factor = ends(y, n1, tl.full((), S1, ACC), SCHEME)
    at = z * slice_ + x
    e = one + difference(uy, at, low, high, n2, factor, exists, ACC)
    h = difference(ux, at, low, high, n2, factor, exists, ACC)
    if D == 3:
        b = difference(u, at, low, high, n2, factor, exists, ACC)
        low, high, factor = ends(z, n0, tl.full((), S0, ACC), SCHEME)
        at = y * n2 + x
        a = one + difference(u, at, low, high, slice_, factor, exists, ACC)
        d = difference(uy, at, low, high, slice_, factor, exists, ACC)
        g = difference(ux, at, low, high, slice_, factor, exists, ACC)
    return a, b, c, d, e, f, g, h, i


@triton.jit
def determinant(a, b, c, d, e, f, g, h, i, D: tl.constexpr):
    if D == 2:
        return e * i - f * h
    else:
        return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


@triton.jit
def penalty_value(det, THRESHOLD: tl.constexpr, PENALTY: tl.constexpr):
    """csrc/math/penalty.h; NaN stays NaN."""
    if PENALTY == "relu":
        below = THRESHOLD - det
        return tl.where(below < 0, 0.0, below)
    else:
        return tl.abs(det - 1.0)


@triton.jit
def penalty_slope(det, THRESHOLD: tl.constexpr, PENALTY: tl.constexpr):
    if PENALTY == "relu":
        return tl.where(THRESHOLD - det <= 0, 0.0, -1.0).to(det.dtype)
    else:
        return tl.where(det > 1, 1.0, tl.where(det < 1, -1.0, 0.0)).to(det.dtype)


@triton.jit
def write_sums(sums, folds, det, exists, THRESHOLD: tl.constexpr, PENALTY: tl.constexpr):
    """A program's sum of penalties and number of folds."""
    value = tl.where(exists, penalty_value(det, THRESHOLD, PENALTY), 0.0)
    tl.store(sums + tl.program_id(0), tl.sum(value.to(tl.float64)))
    tl.store(folds + tl.program_id(0), tl.sum((exists & (det <= 0)).to(tl.int64)))


@triton.jit
def jacobian_forward_kernel(
    u, out, sums, folds, total, n0, n1, n2, S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr,
    D: tl.constexpr, SCHEME: tl.constexpr, PENALTY: tl.constexpr, THRESHOLD: tl.constexpr, TILE: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Determinants, or with a PENALTY its sums and the folds'. S are the inverse spacings."""
    n0, n1, n2 = whole(n0), whole(n1), whole(n2)
    voxel = elements(tl.program_id(0), TILE, WIDE)
    exists = voxel < total
    z, y, x, item = voxel_of(voxel, n0, n1, n2)
    voxels = n0.to(tl.int64) * n1 * n2
    a, b, c, d, e, f, g, h, i = jacobian_at(
        u + item * D * voxels, voxels, z, y, x, exists, n0, n1, n2, S0, S1, S2, D, SCHEME, ACC
    )
    det = determinant(a, b, c, d, e, f, g, h, i, D)
    if PENALTY == "none":
        write(out, voxel, det, exists)
    else:
        write_sums(sums, folds, det, exists, THRESHOLD, PENALTY)


@triton.jit
def weight_in(i, mine, n, step, SCHEME: tl.constexpr):
    """Weight of the voxel at `mine` in the difference at i, 0 outside the lattice."""
    lower, upper, factor = ends(i, n, step, SCHEME)
    weight = factor * ((upper == mine).to(step.dtype) - (lower == mine).to(step.dtype))
    return tl.where((i >= 0) & (i < n), weight, 0.0)


@triton.jit
def by_columns(wz, wy, wx, a, b, c, d, e, f, g, h, i, D: tl.constexpr):
    """The cofactor matrix times w: derivatives of the determinant by the rows z, y, x."""
    if D == 2:
        return wz, wy * i - wx * h, wx * e - wy * f
    else:
        z = wz * (e * i - f * h) + wy * (f * g - d * i) + wx * (d * h - e * g)
        y = wz * (c * h - b * i) + wy * (a * i - c * g) + wx * (b * g - a * h)
        return z, y, wz * (b * f - c * e) + wy * (c * d - a * f) + wx * (a * e - b * d)


@triton.jit
def jacobian_backward_kernel(
    u, grad, out, total, n0, n1, n2, S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr,
    D: tl.constexpr, SCHEME: tl.constexpr, PENALTY: tl.constexpr, THRESHOLD: tl.constexpr, TILE: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of the field; `grad` is that of the determinants, or of their mean penalty."""
    n0, n1, n2 = whole(n0), whole(n1), whole(n2)
    voxel = elements(tl.program_id(0), TILE, WIDE)
    exists = voxel < total
    z, y, x, item = voxel_of(voxel, n0, n1, n2)
    voxels = n0.to(tl.int64) * n1 * n2
    field = u + item * D * voxels
    scale = tl.full((), 1.0, ACC)
    if PENALTY != "none":
        scale = (number(grad, tl.float64) / whole(total).to(tl.float64)).to(ACC)
    s0, s1, s2 = tl.full((), S0, ACC), tl.full((), S1, ACC), tl.full((), S2, ACC)
    gz, gy, gx = tl.zeros(x.shape, ACC), tl.zeros(x.shape, ACC), tl.zeros(x.shape, ACC)
    for near in tl.static_range(
        6 - 2 * D, 7
    ):  # two neighbours along z, two along y, two along x, and the voxel
        qz, qy, qx = z, y, x
        wz, wy, wx = tl.zeros(x.shape, ACC), tl.zeros(x.shape, ACC), tl.zeros(x.shape, ACC)
        if near < 2:
            qz = z + (2 * near - 1)
        elif near < 4:
            qy = y + (2 * near - 5)
        elif near < 6:
            qx = x + (2 * near - 9)
        if D == 3 and (near < 2 or near == 6):
            wz = weight_in(qz, z, n0, s0, SCHEME)
        if (near >= 2 and near < 4) or near == 6:
            wy = weight_in(qy, y, n1, s1, SCHEME)
        if near >= 4:
            wx = weight_in(qx, x, n2, s2, SCHEME)
        there = exists & ((wz != 0) | (wy != 0) | (wx != 0))
        a, b, c, d, e, f, g, h, i = jacobian_at(
            field, voxels, qz, qy, qx, there, n0, n1, n2, S0, S1, S2, D, SCHEME, ACC
        )
        at = (qz * n1 + qy) * n2 + qx
        slope = scale
        if PENALTY == "none":
            slope = read(grad, item * voxels + at, there, ACC)
        else:
            slope = scale * penalty_slope(determinant(a, b, c, d, e, f, g, h, i, D), THRESHOLD, PENALTY)
        tz, ty, tx = by_columns(wz, wy, wx, a, b, c, d, e, f, g, h, i, D)
        gz += tl.where(there, slope * tz, 0.0)
        gy += tl.where(there, slope * ty, 0.0)
        gx += tl.where(there, slope * tx, 0.0)
    at = item * D * voxels + (z * n1 + y) * n2 + x
    if D == 3:
        write(out, at, gz, exists)
    write(out, at + (D - 2) * voxels, gy, exists)
    write(out, at + (D - 1) * voxels, gx, exists)


@triton.jit
def matrix_of(jacobians, row, exists, D: tl.constexpr, ACC: tl.constexpr):
    """I + J of matrices (n, D, D), laid out as `jacobian_at` returns them."""
    one = tl.full(row.shape, 1.0, ACC)
    zero = tl.zeros(row.shape, ACC)
    at = row * (D * D)
    if D == 2:
        e, f = one + read(jacobians, at, exists, ACC), read(jacobians, at + 1, exists, ACC)
        h, i = read(jacobians, at + 2, exists, ACC), one + read(jacobians, at + 3, exists, ACC)
        return one, zero, zero, zero, e, f, zero, h, i
    else:
        a, b = one + read(jacobians, at, exists, ACC), read(jacobians, at + 1, exists, ACC)
        c, d = read(jacobians, at + 2, exists, ACC), read(jacobians, at + 3, exists, ACC)
        e, f = one + read(jacobians, at + 4, exists, ACC), read(jacobians, at + 5, exists, ACC)
        g, h = read(jacobians, at + 6, exists, ACC), read(jacobians, at + 7, exists, ACC)
        return a, b, c, d, e, f, g, h, one + read(jacobians, at + 8, exists, ACC)


@triton.jit
def matrices_forward_kernel(
    jacobians, sums, folds, total, D: tl.constexpr, PENALTY: tl.constexpr, THRESHOLD: tl.constexpr,
    TILE: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums of the penalty on det(I + J), and of the folds."""
    row = elements(tl.program_id(0), TILE, WIDE)
    exists = row < total
    a, b, c, d, e, f, g, h, i = matrix_of(jacobians, row, exists, D, ACC)
    write_sums(sums, folds, determinant(a, b, c, d, e, f, g, h, i, D), exists, THRESHOLD, PENALTY)


@triton.jit
def matrices_backward_kernel(
    jacobians, grad, out, total, D: tl.constexpr, PENALTY: tl.constexpr, THRESHOLD: tl.constexpr,
    TILE: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = elements(tl.program_id(0), TILE, WIDE)
    exists = row < total
    a, b, c, d, e, f, g, h, i = matrix_of(jacobians, row, exists, D, ACC)
    slope = (number(grad, tl.float64) / whole(total).to(tl.float64)).to(ACC)
    slope *= penalty_slope(determinant(a, b, c, d, e, f, g, h, i, D), THRESHOLD, PENALTY)
    zero = tl.zeros(row.shape, ACC)
    at = row * (D * D)
    for column in tl.static_range(3 - D, 3):
        wz, wy, wx = zero, zero, zero
        if column == 0:
            wz = slope
        elif column == 1:
            wy = slope
        else:
            wx = slope
        tz, ty, tx = by_columns(wz, wy, wx, a, b, c, d, e, f, g, h, i, D)
        if D == 3:
            write(out, at + column, tz, exists)
        write(out, at + (D - 2) * D + column - 3 + D, ty, exists)
        write(out, at + (D - 1) * D + column - 3 + D, tx, exists)
