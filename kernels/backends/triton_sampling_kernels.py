"""Sampling in Triton: values and their slopes, the adjoints of both, and labels.

A program has a block of output points of one batch item and all channels of the image there. `options` of all
kernels: D axes, NORMALISED grids or displacements, PADDING, ALIGN, AFFINE.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_lattice_access import elements, read, whole, write
from .triton_sampling_cells import (
    cell,
    cell_along,
    channels_of,
    located,
    nearest,
    passed,
    turned,
    whole_points,
    write_slopes,
)


@triton.jit
def sample_forward_kernel(
    image, coordinates, affine, out, slopes, blocks, points, m1, m2, n0, n1, n2, channels,
    D: tl.constexpr, NORMALISED: tl.constexpr, NEAREST: tl.constexpr, PADDING: tl.constexpr,
    ALIGN: tl.constexpr, AFFINE: tl.constexpr, SLOPES: tl.constexpr, BP: tl.constexpr, WIDE: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Values (B, C, points); with SLOPES also their derivatives by the coordinates, laid out like these a channel."""
    n0, n1, n2 = whole(n0), whole(n1), whole(n2)
    item = (tl.program_id(0) // blocks).to(tl.int64)
    point = elements(tl.program_id(0) % blocks, BP, WIDE)
    exists = point < points
    length, voxels = whole_points(points), n0.to(tl.int64) * n1 * n2
    matrix = affine + item * (D * (D + 1))
    z, y, x, _, _, _ = located(
        coordinates + item * D * length, matrix, point, exists, points, m1, m2, n0, n1, n2,
        D, NORMALISED, ALIGN, AFFINE, ACC,
    )  # fmt: skip
    if NEAREST:
        at, there = nearest(z, y, x, exists, n0, n1, n2, D, PADDING, ALIGN)
        for c in range(channels):
            plane = item * channels + c
            write(out + plane * length, point, read(image + plane * voxels, at, there, ACC), exists)
    else:
        y, wy, sy = cell_along(y, n1, PADDING, ALIGN)
        x, wx, sx = cell_along(x, n2, PADDING, ALIGN)
        z, wz, sz = cell_along(z, n0, PADDING, ALIGN)
        if D == 2:
            z = tl.zeros(y.shape, tl.int32)
        for c in range(channels):
            plane = item * channels + c
            value, dz, dy, dx, _, _, _ = cell(
                image + plane * voxels, exists, z, y, x, wz, wy, wx, n0, n1, n2, D, ACC
            )
            write(out + plane * length, point, value, exists)
            if SLOPES:
                write_slopes(
                    slopes + plane * D * length, matrix, point, exists, points,
                    passed(dz, sz), passed(dy, sy), passed(dx, sx), n0, n1, n2,
                    D, NORMALISED, ALIGN, AFFINE, ACC,
                )  # fmt: skip


@triton.jit
def add(target, at, there, share, scale, FIXED: tl.constexpr):
    """Adds to an image: floats in the order in which they arrive, or whole numbers of 1 / scale, whose sum has no
    order."""
    there = there & (share != 0)
    if FIXED:
        units = tl.floor(share.to(tl.float64) * scale + 0.5)
        tl.atomic_add(target + at, units.to(tl.int64), mask=there, sem="relaxed")
    else:
        tl.atomic_add(target + at, share, mask=there, sem="relaxed")


@triton.jit
def spread_face(
    target, slice_there, z, y, x, a, qy, qx, wy, wx, n1, n2, scale, FIXED: tl.constexpr
):  # fmt: skip
    """The adjoint of `face`, of its value and slopes, into the image."""
    y0 = slice_there & (y >= 0) & (y < n1)
    y1 = slice_there & (y >= -1) & (y < n1 - 1)
    x0, x1 = (x >= 0) & (x < n2), (x >= -1) & (x < n2 - 1)
    at = (z * n1 + y) * n2 + x
    high = wy * a + qy
    low = a - high
    q_high = wy * qx
    q_low = qx - q_high
    v11 = wx * high + q_high
    v01 = wx * low + q_low
    add(target, at, y0 & x0, low - v01, scale, FIXED)
    add(target, at + 1, y0 & x1, v01, scale, FIXED)
    add(target, at + n2, y1 & x0, high - v11, scale, FIXED)
    add(target, at + n2 + 1, y1 & x1, v11, scale, FIXED)


@triton.jit
def spread(
    target, exists, z, y, x, a, qz, qy, qx, wz, wy, wx, n0, n1, n2, scale,
    D: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """The adjoint of `cell`: a arrives at the value, q at the slopes."""
    if D == 2:
        spread_face(target, exists, z, y, x, a, qy, qx, wy, wx, n1, n2, scale, FIXED)
    else:
        high = wz * a + qz
        y_high, x_high = wz * qy, wz * qx
        there = exists & (z >= 0) & (z < n0)
        spread_face(target, there, z, y, x, a - high, qy - y_high, qx - x_high, wy, wx, n1, n2, scale, FIXED)
        there = exists & (z >= -1) & (z < n0 - 1)
        spread_face(target, there, z + 1, y, x, high, y_high, x_high, wy, wx, n1, n2, scale, FIXED)


@triton.jit
def add_sum(sums, ENTRY: tl.constexpr, a, b):
    """Adds the sum of a b to one entry of a program's sums."""
    total = tl.sum(a.to(tl.float64) * b.to(tl.float64))
    return sums + tl.where(tl.arange(0, 16) == ENTRY, total, 0.0)


@triton.jit
def add_row(sums, ROW: tl.constexpr, a, z, y, x, D: tl.constexpr):
    """Adds the sums of a (z, y, x) to a row of the affine's gradient."""
    if D == 3:
        sums = add_sum(sums, ROW * (D + 1), a, z)
    sums = add_sum(sums, ROW * (D + 1) + D - 2, a, y)
    return add_sum(sums, ROW * (D + 1) + D - 1, a, x)


@triton.jit
def add_rows(sums, gz, gy, gx, z, y, x, D: tl.constexpr):
    """Adds the sums of g (z, y, x) to all rows but their last column."""
    if D == 3:
        sums = add_row(sums, 0, gz, z, y, x, D)
    sums = add_row(sums, D - 2, gy, z, y, x, D)
    return add_row(sums, D - 1, gx, z, y, x, D)


@triton.jit
def add_shifts(sums, gz, gy, gx, D: tl.constexpr):
    """Adds the sums of g to the last column."""
    if D == 3:
        sums = add_sum(sums, D, gz, tl.full(gz.shape, 1.0, gz.dtype))
    sums = add_sum(sums, (D - 2) * (D + 1) + D, gy, tl.full(gy.shape, 1.0, gy.dtype))
    return add_sum(sums, (D - 1) * (D + 1) + D, gx, tl.full(gx.shape, 1.0, gx.dtype))


@triton.jit
def sample_backward_kernel(
    grad, grad_slopes, image, coordinates, affine, to_image, to_coordinates, partial, scale,
    blocks, points, m1, m2, n0, n1, n2, channels,
    D: tl.constexpr, NORMALISED: tl.constexpr, NEAREST: tl.constexpr, PADDING: tl.constexpr,
    ALIGN: tl.constexpr, AFFINE: tl.constexpr, SLOPES: tl.constexpr, WANT_IMAGE: tl.constexpr,
    WANT_COORDINATES: tl.constexpr, WANT_AFFINE: tl.constexpr, FIXED: tl.constexpr, BP: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The adjoint of `sample_forward_kernel`.

    With SLOPES, `grad_slopes` arrives at the derivatives by the displacement. Images are added to (`add`), of the
    affine's gradient every program writes its sums.
    """
    n0, n1, n2 = whole(n0), whole(n1), whole(n2)
    item = (tl.program_id(0) // blocks).to(tl.int64)
    point = elements(tl.program_id(0) % blocks, BP, WIDE)
    exists = point < points
    length, voxels = whole_points(points), n0.to(tl.int64) * n1 * n2
    matrix = affine + item * (D * (D + 1))
    unit = tl.full((), 1.0, tl.float64)
    if FIXED:
        unit = tl.load(scale)
    z, y, x, pz, py, px = located(
        coordinates + item * D * length, matrix, point, exists, points, m1, m2, n0, n1, n2,
        D, NORMALISED, ALIGN, AFFINE, ACC,
    )  # fmt: skip
    if NEAREST:
        at, there = nearest(z, y, x, exists, n0, n1, n2, D, PADDING, ALIGN)
        for c in range(channels):
            plane = item * channels + c
            add(
                to_image + plane * voxels,
                at,
                there,
                read(grad + plane * length, point, exists, ACC),
                unit,
                FIXED,
            )
    else:
        y, wy, sy = cell_along(y, n1, PADDING, ALIGN)
        x, wx, sx = cell_along(x, n2, PADDING, ALIGN)
        z, wz, sz = cell_along(z, n0, PADDING, ALIGN)
        if D == 2:
            z = tl.zeros(y.shape, tl.int32)
        zero = tl.zeros(y.shape, ACC)
        gz, gy, gx, qz, qy, qx, rz, ry, rx = zero, zero, zero, zero, zero, zero, zero, zero, zero
        sums = tl.zeros((16,), tl.float64)
        for c in range(channels):
            plane = item * channels + c
            a = read(grad + plane * length, point, exists, ACC)
            if SLOPES:
                rz, ry, rx = channels_of(grad_slopes + plane * D * length, point, exists, points, D, ACC)
                qz, qy, qx = turned(matrix, rz, ry, rx, AFFINE, D, ACC)
                qz, qy, qx = passed(qz, sz), passed(qy, sy), passed(qx, sx)
            if WANT_COORDINATES or WANT_AFFINE:
                _, dz, dy, dx, zy, zx, yx = cell(
                    image + plane * voxels, exists, z, y, x, wz, wy, wx, n0, n1, n2, D, ACC
                )
                gz += a * dz
                gy += a * dy
                gx += a * dx
                if SLOPES:  # the pure second derivatives inside a cell are 0
                    gz += qy * zy + qx * zx
                    gy += qz * zy + qx * yx
                    gx += qz * zx + qy * yx
                    if WANT_AFFINE:
                        sums = add_rows(sums, passed(dz, sz), passed(dy, sy), passed(dx, sx), rz, ry, rx, D)
            if WANT_IMAGE:
                spread(
                    to_image + plane * voxels, exists, z, y, x, a, qz, qy, qx, wz, wy, wx, n0, n1, n2, unit,
                    D, FIXED,
                )  # fmt: skip
        gz, gy, gx = passed(gz, sz), passed(gy, sy), passed(gx, sx)
        if WANT_COORDINATES:
            write_slopes(
                to_coordinates + item * D * length, matrix, point, exists, points, gz, gy, gx, n0, n1, n2,
                D, NORMALISED, ALIGN, AFFINE, ACC,
            )  # fmt: skip
        if WANT_AFFINE:
            sums = add_shifts(add_rows(sums, gz, gy, gx, pz, py, px, D), gz, gy, gx, D)
            entry = tl.arange(0, 16)
            to = partial + tl.program_id(0).to(tl.int64) * (D * (D + 1))
            tl.store(to + entry, sums, mask=entry < D * (D + 1))
