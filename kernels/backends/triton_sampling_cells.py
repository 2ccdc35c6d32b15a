"""Points and the voxels around them in Triton: torch's grid_sample conventions, as csrc/math/trilinear.h has them.

D is 2 or 3. Image sizes are n0, n1, n2 along z, y, x; with D = 2, n0 is 1 and what belongs to z is never looked at.
A displacement has the channels z, y, x (y, x with D = 2), a grid the components x, y, z.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_lattice_access import number, read, write


@triton.jit
def reflected(x, size, ALIGN: tl.constexpr):
    """The line folded at the image's limits (voxel centres with ALIGN, voxel edges without), and its slope."""
    if ALIGN:
        low = 0.0
        span = size - 1.0
    else:
        low = -0.5
        span = size
    period = tl.where(span > 0, span, 1.0).to(x.dtype)
    away = x - low
    distance = tl.abs(away)
    flips = tl.floor(distance / period)
    rest = distance - flips * period
    odd = flips - 2.0 * tl.floor(flips * 0.5) != 0
    slope = tl.where((away < 0) != odd, -1.0, 1.0).to(x.dtype)
    folded = tl.where(odd, period - rest, rest) + low
    return tl.where(span > 0, folded, 0.0), slope


@triton.jit
def padded(x, n, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """The coordinate behind the padding, and the slope that it leaves. NaN goes to the lower end; every result is
    a small number, with zeros a place just outside for all that lies outside."""
    slope = tl.full(x.shape, 1.0, x.dtype)
    size = n.to(x.dtype)
    if PADDING == "zeros":
        x = tl.where(x > -2.0, x, -2.0)
        x = tl.where(x < size + 1.0, x, size + 1.0)
    else:
        if PADDING == "reflection":
            x, slope = reflected(x, size, ALIGN)
        last = size - 1.0
        slope = tl.where((x > 0) & (x < last), slope, 0.0)
        x = tl.where(x > 0, x, 0.0)
        x = tl.where(x < last, x, last)
    return x, slope


@triton.jit
def cell_along(x, n, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """Lower voxel of a point's cell, weight of the upper one, and the slope that padding leaves."""
    x, slope = padded(x, n, PADDING, ALIGN)
    low = tl.floor(x)
    if PADDING != "zeros":  # a clipped coordinate on the last voxel belongs to the cell below it
        low = tl.minimum(low, (n - 2).to(x.dtype))
    return low.to(tl.int32), x - low, slope


@triton.jit
def nearest_along(x, n, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """The nearest voxel, halves to the even one, and whether it exists."""
    x, _ = padded(x, n, PADDING, ALIGN)
    low = tl.floor(x)
    rest = x - low
    voxel = low.to(tl.int32)
    voxel += ((rest > 0.5) | ((rest == 0.5) & ((voxel & 1) != 0))).to(tl.int32)
    return voxel, (voxel >= 0) & (voxel < n)


@triton.jit
def nearest(z, y, x, exists, n0, n1, n2, D: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """Offset of the nearest voxel, and whether it exists."""
    y, y_there = nearest_along(y, n1, PADDING, ALIGN)
    x, x_there = nearest_along(x, n2, PADDING, ALIGN)
    at = y * n2 + x
    there = exists & y_there & x_there
    if D == 3:
        z, z_there = nearest_along(z, n0, PADDING, ALIGN)
        at += z * (n1 * n2)
        there = there & z_there
    return at, there


@triton.jit
def unnormalised(x, n, ALIGN: tl.constexpr):
    size = n.to(x.dtype)
    if ALIGN:
        return (x + 1.0) * 0.5 * (size - 1.0)
    else:
        return ((x + 1.0) * size - 1.0) * 0.5


@triton.jit
def unnormalised_slope(n, ALIGN: tl.constexpr, ACC: tl.constexpr):
    if ALIGN:
        return (n - 1).to(ACC) * 0.5
    else:
        return n.to(ACC) * 0.5


@triton.jit
def along_row(matrix, ROW: tl.constexpr, z, y, x, D: tl.constexpr, ACC: tl.constexpr):
    """A row of a (D, D + 1) matrix times a vector, without its last column."""
    row = matrix + ROW * (D + 1)
    product = number(row + D - 2, ACC) * y + number(row + D - 1, ACC) * x
    if D == 3:
        product += number(row, ACC) * z
    return product


@triton.jit
def along_column(matrix, COLUMN: tl.constexpr, z, y, x, D: tl.constexpr, ACC: tl.constexpr):
    """A column of a (D, D + 1) matrix times a vector."""
    column = matrix + COLUMN
    product = number(column + (D - 2) * (D + 1), ACC) * y + number(column + (D - 1) * (D + 1), ACC) * x
    if D == 3:
        product += number(column, ACC) * z
    return product


@triton.jit
def turned(matrix, z, y, x, AFFINE: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr):
    """A direction in the displacement's coordinates in those of voxels."""
    if AFFINE:
        to_z = z
        if D == 3:
            to_z = along_row(matrix, 0, z, y, x, D, ACC)
        to_y = along_row(matrix, D - 2, z, y, x, D, ACC)
        return to_z, to_y, along_row(matrix, D - 1, z, y, x, D, ACC)
    else:
        return z, y, x


@triton.jit
def channels_of(field, point, exists, points, D: tl.constexpr, ACC: tl.constexpr):
    """A vector field (D, points) at points; z is 0 with D = 2."""
    z = tl.zeros(point.shape, ACC)
    if D == 3:
        z = read(field, point, exists, ACC)
    wide = whole_points(points)
    y = read(field + (D - 2) * wide, point, exists, ACC)
    return z, y, read(field + (D - 1) * wide, point, exists, ACC)


@triton.jit
def whole_points(points):
    return tl.full((), 0, tl.int64) + points


@triton.jit
def positions(displacement, point, exists, points, m1, m2, D: tl.constexpr, ACC: tl.constexpr):
    """i + u on an output lattice of m1 rows of m2 points."""
    z, y, x = channels_of(displacement, point, exists, points, D, ACC)
    row = point // m2
    x += (point % m2).to(ACC)
    y += (row % m1).to(ACC)
    if D == 3:
        z += (row // m1).to(ACC)
    return z, y, x


@triton.jit
def located(
    coordinates, affine, point, exists, points, m1, m2, n0, n1, n2,
    D: tl.constexpr, NORMALISED: tl.constexpr, ALIGN: tl.constexpr, AFFINE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Voxel coordinates of points before padding, and the positions that the affine map was given."""
    if NORMALISED:
        grid = coordinates + point * D
        x = unnormalised(read(grid, 0, exists, ACC), n2, ALIGN)
        y = unnormalised(read(grid, 1, exists, ACC), n1, ALIGN)
        z = tl.zeros(point.shape, ACC)
        if D == 3:
            z = unnormalised(read(grid, 2, exists, ACC), n0, ALIGN)
        return z, y, x, z, y, x
    else:
        pz, py, px = positions(coordinates, point, exists, points, m1, m2, D, ACC)
        z, y, x = turned(affine, pz, py, px, AFFINE, D, ACC)
        if AFFINE:
            if D == 3:
                z += number(affine + 3, ACC)
            y += number(affine + (D - 2) * (D + 1) + D, ACC)
            x += number(affine + (D - 1) * (D + 1) + D, ACC)
        return z, y, x, pz, py, px


@triton.jit
def face(image, slice_there, z, y, x, wy, wx, n1, n2, ACC: tl.constexpr):
    """In one slice of a cell: the value, its derivatives along y and x, and the mixed one."""
    y0 = slice_there & (y >= 0) & (y < n1)
    y1 = slice_there & (y >= -1) & (y < n1 - 1)
    x0, x1 = (x >= 0) & (x < n2), (x >= -1) & (x < n2 - 1)
    at = (z * n1 + y) * n2 + x
    v00, v01 = read(image, at, y0 & x0, ACC), read(image, at + 1, y0 & x1, ACC)
    v10, v11 = read(image, at + n2, y1 & x0, ACC), read(image, at + n2 + 1, y1 & x1, ACC)
    d0, d1 = v01 - v00, v11 - v10
    low, high = v00 + wx * d0, v10 + wx * d1
    return low + wy * (high - low), high - low, d0 + wy * (d1 - d0), d1 - d0


@triton.jit
def cell(image, exists, z, y, x, wz, wy, wx, n0, n1, n2, D: tl.constexpr, ACC: tl.constexpr):
    """The interpolated value, its derivatives along z, y, x, and the mixed ones of zy, zx, yx."""
    if D == 2:
        value, dy, dx, yx = face(image, exists, z, y, x, wy, wx, n1, n2, ACC)
        zero = tl.zeros(value.shape, ACC)
        return value, zero, dy, dx, zero, zero, yx
    else:
        v0, y0, x0, m0 = face(image, exists & (z >= 0) & (z < n0), z, y, x, wy, wx, n1, n2, ACC)
        v1, y1, x1, m1 = face(image, exists & (z >= -1) & (z < n0 - 1), z + 1, y, x, wy, wx, n1, n2, ACC)
        dz, zy, zx = v1 - v0, y1 - y0, x1 - x0
        return v0 + wz * dz, dz, y0 + wz * zy, x0 + wz * zx, zy, zx, m0 + wz * (m1 - m0)


@triton.jit
def passed(derivative, slope):
    """A derivative behind the padding. What padding has moved has none, even where the image is not finite."""
    return tl.where(slope != 0, derivative * slope, 0.0)


@triton.jit
def write_slopes(
    to, affine, point, exists, points, z, y, x, n0, n1, n2,
    D: tl.constexpr, NORMALISED: tl.constexpr, ALIGN: tl.constexpr, AFFINE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Derivatives by voxel coordinates as derivatives by the caller's, laid out as the coordinates are."""
    if NORMALISED:
        row = to + point * D
        write(row, 0, x * unnormalised_slope(n2, ALIGN, ACC), exists)
        write(row, 1, y * unnormalised_slope(n1, ALIGN, ACC), exists)
        if D == 3:
            write(row, 2, z * unnormalised_slope(n0, ALIGN, ACC), exists)
    else:
        to_z, to_y, to_x = z, y, x
        if AFFINE:
            if D == 3:
                to_z = along_column(affine, 0, z, y, x, D, ACC)
            to_y = along_column(affine, D - 2, z, y, x, D, ACC)
            to_x = along_column(affine, D - 1, z, y, x, D, ACC)
        channel = whole_points(points)
        if D == 3:
            write(to, point, to_z, exists)
        write(to + (D - 2) * channel, point, to_y, exists)
        write(to + (D - 1) * channel, point, to_x, exists)
