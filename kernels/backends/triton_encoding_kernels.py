"""Grids and Fourier features in Triton: values, their tangents along x, and the gradients of both.

A row of features stands at ``out + k plane + point row``: k = 0 holds values, k = 1 .. D their derivatives to x_k
(with JET). Grids, dense or hashed, and latent volumes are one kernel: a volume is a dense level of its own sizes.
In two dimensions the third axis has one vertex.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pick(TABLE: tl.constexpr, place, TYPE: tl.constexpr):
    """TABLE[place] of a tuple of numbers, for a place that is known at run time only."""
    number = tl.full((), TABLE[0], TYPE)
    for other in tl.static_range(1, len(TABLE)):
        number = tl.where(place == other, tl.full((), TABLE[other], TYPE), number)
    return number


@triton.jit
def cell_of(
    x, point, exists, size, AXIS: tl.constexpr, D: tl.constexpr, SMOOTH: tl.constexpr, ACC: tl.constexpr
):
    """Cell on an axis of `size` vertices, weight of its upper vertex, the weight's first and second derivative."""
    if AXIS < D:
        at = tl.load(x + point * D + AXIS, mask=exists, other=0.0).to(ACC)
    else:
        at = tl.zeros(point.shape, ACC)
    last = size - 1
    inside = (at >= -1) & (at <= 1)
    at = tl.where(at >= -1, at, -1.0)  # NaN as well
    at = (tl.where(at <= 1, at, 1.0) + 1.0) * 0.5 * last.to(ACC)
    cell = tl.minimum(tl.floor(at).to(tl.int32), tl.maximum(last - 1, 0))
    upper = at - cell.to(ACC)
    slope = tl.where(inside, 0.5 * last.to(ACC), 0.0)
    curvature = tl.zeros(point.shape, ACC)
    if SMOOTH:
        curvature = (6.0 - 12.0 * upper) * slope * slope
        slope = 6.0 * upper * (1.0 - upper) * slope
        upper = upper * upper * (3.0 - 2.0 * upper)
    return cell, upper, slope, curvature


@triton.jit
def side(cell, upper, slope, curvature, last, BIT: tl.constexpr):
    """Vertex, weight and the weight's derivatives on the lower or upper side of a cell."""
    if BIT:
        return tl.minimum(cell + 1, last), upper, slope, curvature
    else:
        return cell, 1.0 - upper, -slope, -curvature


@triton.jit
def entry_of(v0, v1, v2, s1, s2, dense, TABLE_SIZE: tl.constexpr):
    """Entry of a vertex in its level: row-major where the level is dense, else Instant NGP's hash."""
    entry = (v0 * s1 + v1) * s2 + v2
    if TABLE_SIZE > 0:
        hashed = v0.to(tl.uint32) ^ (v1.to(tl.uint32) * 2654435761) ^ (v2.to(tl.uint32) * 805459861)
        hashed = (hashed & (TABLE_SIZE - 1)).to(tl.int32)
        entry = tl.where(dense != 0, entry, hashed)
    return entry.to(tl.int64)


@triton.jit
def level_of(
    level, s0, s1, s2, SIZES: tl.constexpr, STARTS: tl.constexpr, DENSE: tl.constexpr, D: tl.constexpr
):
    """Sizes of a level, its first entry and whether it is dense; a volume has no levels and brings its sizes."""
    none = tl.full((), 0, tl.int32)  # sizes of 1 arrive as constants
    s0, s1, s2, start, dense = none + s0, none + s1, none + s2, none.to(tl.int64), none + 1
    if len(SIZES) > 0:
        s0 = pick(SIZES, level, tl.int32)
        s1 = s0
        s2 = s0
        if D == 2:
            s2 = tl.full((), 1, tl.int32)
        start = pick(STARTS, level, tl.int64)
        dense = pick(DENSE, level, tl.int32)
    return s0, s1, s2, start, dense


@triton.jit
def grid_forward(
    x, table, out, n, row, plane, s0, s1, s2, entry_stride, feature_stride,
    SIZES: tl.constexpr, STARTS: tl.constexpr, DENSE: tl.constexpr, TABLE_SIZE: tl.constexpr, D: tl.constexpr,
    F: tl.constexpr, F2: tl.constexpr, JET: tl.constexpr, SMOOTH: tl.constexpr, BP: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """One level's features of BP points; program (block of points, level)."""
    level = tl.program_id(1)
    point = (tl.program_id(0) * BP + tl.arange(0, BP)[:, None]).to(tl.int64)
    feature = tl.arange(0, F2)[None, :]
    exists, stored = point < n, (point < n) & (feature < F)
    s0, s1, s2, start, dense = level_of(level, s0, s1, s2, SIZES, STARTS, DENSE, D)
    i0, u0, du0, ddu0 = cell_of(x, point, exists, s0, 0, D, SMOOTH, ACC)
    i1, u1, du1, ddu1 = cell_of(x, point, exists, s1, 1, D, SMOOTH, ACC)
    i2, u2, du2, ddu2 = cell_of(x, point, exists, s2, 2, D, SMOOTH, ACC)
    value = tl.zeros((BP, F2), ACC)
    e0 = tl.zeros((BP, F2), ACC)
    e1 = tl.zeros((BP, F2), ACC)
    e2 = tl.zeros((BP, F2), ACC)
    for corner in tl.static_range(2**D):
        v0, a0, b0, _ = side(i0, u0, du0, ddu0, s0 - 1, corner & 1)
        v1, a1, b1, _ = side(i1, u1, du1, ddu1, s1 - 1, (corner >> 1) & 1)
        v2, a2, b2, _ = side(i2, u2, du2, ddu2, s2 - 1, (corner >> 2) & 1)
        entry = start + entry_of(v0, v1, v2, s1, s2, dense, TABLE_SIZE)
        g = tl.load(table + entry * entry_stride + feature * feature_stride, mask=stored, other=0.0).to(ACC)
        value += a0 * a1 * a2 * g
        if JET:
            e0 += b0 * a1 * a2 * g
            e1 += a0 * b1 * a2 * g
            e2 += a0 * a1 * b2 * g
    to = out + point * row + level * F + feature
    kind = out.dtype.element_ty
    tl.store(to, value.to(kind), mask=stored)
    if JET:
        tl.store(to + plane, e0.to(kind), mask=stored)
        tl.store(to + 2 * plane, e1.to(kind), mask=stored)
        if D == 3:
            tl.store(to + 3 * plane, e2.to(kind), mask=stored)


@triton.jit
def grid_backward(
    x, table, grad, grad_x, grad_table, scale, n, row, plane, s0, s1, s2, entry_stride, feature_stride, levels,
    SIZES: tl.constexpr, STARTS: tl.constexpr, DENSE: tl.constexpr, TABLE_SIZE: tl.constexpr, D: tl.constexpr,
    F: tl.constexpr, F2: tl.constexpr, JET: tl.constexpr, SMOOTH: tl.constexpr, BP: tl.constexpr,
    ACC: tl.constexpr, WANT_X: tl.constexpr, WANT_TABLE: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """Gradients of `levels` levels for BP points; program (block of points, group of levels).

    `grad_x` (n, D) is added to, so one program has all levels of its points where it is wanted. `grad_table` is
    scattered into: floats in the order in which the atomics arrive, or whole numbers of 1 / `scale` (FIXED), whose
    sum does not depend on the order.
    """
    point = (tl.program_id(0) * BP + tl.arange(0, BP)[:, None]).to(tl.int64)
    feature = tl.arange(0, F2)[None, :]
    exists, stored = point < n, (point < n) & (feature < F)
    x0 = tl.zeros((BP, 1), ACC)
    x1 = tl.zeros((BP, 1), ACC)
    x2 = tl.zeros((BP, 1), ACC)
    level = tl.program_id(1) * levels
    end = level + levels
    while level < end:
        t0, t1, t2, start, dense = level_of(level, s0, s1, s2, SIZES, STARTS, DENSE, D)
        i0, u0, du0, ddu0 = cell_of(x, point, exists, t0, 0, D, SMOOTH, ACC)
        i1, u1, du1, ddu1 = cell_of(x, point, exists, t1, 1, D, SMOOTH, ACC)
        i2, u2, du2, ddu2 = cell_of(x, point, exists, t2, 2, D, SMOOTH, ACC)
        source = grad + point * row + level * F + feature
        value = tl.load(source, mask=stored, other=0.0).to(ACC)
        if JET:
            e0 = tl.load(source + plane, mask=stored, other=0.0).to(ACC)
            e1 = tl.load(source + 2 * plane, mask=stored, other=0.0).to(ACC)
            e2 = tl.zeros((BP, F2), ACC)
            if D == 3:
                e2 = tl.load(source + 3 * plane, mask=stored, other=0.0).to(ACC)
        for corner in tl.static_range(2**D):
            v0, a0, b0, c0 = side(i0, u0, du0, ddu0, t0 - 1, corner & 1)
            v1, a1, b1, c1 = side(i1, u1, du1, ddu1, t1 - 1, (corner >> 1) & 1)
            v2, a2, b2, c2 = side(i2, u2, du2, ddu2, t2 - 1, (corner >> 2) & 1)
            entry = start + entry_of(v0, v1, v2, t1, t2, dense, TABLE_SIZE)
            at = entry * entry_stride + feature * feature_stride
            if WANT_TABLE:
                share = a0 * a1 * a2 * value
                if JET:
                    share += b0 * a1 * a2 * e0 + a0 * b1 * a2 * e1 + a0 * a1 * b2 * e2
                if FIXED:
                    units = tl.floor(share.to(tl.float64) * tl.load(scale) + 0.5)
                    tl.atomic_add(grad_table + at, units.to(tl.int64), mask=stored, sem="relaxed")
                else:
                    tl.atomic_add(grad_table + at, share, mask=stored, sem="relaxed")
            if WANT_X:
                g = tl.load(table + at, mask=stored, other=0.0).to(ACC)
                s = tl.sum(value * g, 1)[:, None]
                x0 += b0 * a1 * a2 * s
                x1 += a0 * b1 * a2 * s
                x2 += a0 * a1 * b2 * s
                if JET:
                    r0 = tl.sum(e0 * g, 1)[:, None]
                    r1 = tl.sum(e1 * g, 1)[:, None]
                    r2 = tl.sum(e2 * g, 1)[:, None]
                    x0 += c0 * a1 * a2 * r0 + b0 * b1 * a2 * r1 + b0 * a1 * b2 * r2
                    x1 += b0 * b1 * a2 * r0 + a0 * c1 * a2 * r1 + a0 * b1 * b2 * r2
                    x2 += b0 * a1 * b2 * r0 + a0 * b1 * b2 * r1 + a0 * a1 * c2 * r2
        level += 1
    if WANT_X:
        add_to_row(grad_x, point, exists, x0, x1, x2, D)


@triton.jit
def add_to_row(target, point, exists, x0, x1, x2, D: tl.constexpr):
    """target[point] += (x0, x1, x2); no other program has the point."""
    to = target + point * D
    tl.store(to, tl.load(to, mask=exists, other=0.0) + x0, mask=exists)
    tl.store(to + 1, tl.load(to + 1, mask=exists, other=0.0) + x1, mask=exists)
    if D == 3:
        tl.store(to + 2, tl.load(to + 2, mask=exists, other=0.0) + x2, mask=exists)


@triton.jit
def phases(
    x,
    matrix,
    point,
    place,
    exists,
    known,
    frequencies,
    SCALE: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
):
    """Coordinates (BP, 1), columns of scale B (1, BF), and sine and cosine of scale x B (BP, BF)."""
    x0 = tl.load(x + point * D, mask=exists, other=0.0).to(ACC)
    x1 = tl.load(x + point * D + 1, mask=exists, other=0.0).to(ACC)
    m0 = tl.load(matrix + place, mask=known, other=0.0).to(ACC) * SCALE
    m1 = tl.load(matrix + frequencies + place, mask=known, other=0.0).to(ACC) * SCALE
    x2 = x0
    m2 = m0
    phase = x0 * m0 + x1 * m1
    if D == 3:
        x2 = tl.load(x + point * D + 2, mask=exists, other=0.0).to(ACC)
        m2 = tl.load(matrix + 2 * frequencies + place, mask=known, other=0.0).to(ACC) * SCALE
        phase += x2 * m2
    return x0, x1, x2, m0, m1, m2, tl.sin(phase), tl.cos(phase)


@triton.jit
def fourier_forward(
    x, matrix, out, n, row, plane, frequencies,
    SCALE: tl.constexpr, D: tl.constexpr, JET: tl.constexpr, BP: tl.constexpr, BF: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """[sin(scale x B), cos(scale x B)]; program (block of points, block of frequencies)."""
    point = (tl.program_id(0) * BP + tl.arange(0, BP)[:, None]).to(tl.int64)
    place = tl.program_id(1) * BF + tl.arange(0, BF)[None, :]
    exists, known = point < n, place < frequencies
    _, _, _, m0, m1, m2, s, c = phases(x, matrix, point, place, exists, known, frequencies, SCALE, D, ACC)
    kind = out.dtype.element_ty
    to, stored = out + point * row + place, exists & known
    tl.store(to, s.to(kind), mask=stored)
    tl.store(to + frequencies, c.to(kind), mask=stored)
    if JET:
        tl.store(to + plane, (m0 * c).to(kind), mask=stored)
        tl.store(to + plane + frequencies, (-m0 * s).to(kind), mask=stored)
        tl.store(to + 2 * plane, (m1 * c).to(kind), mask=stored)
        tl.store(to + 2 * plane + frequencies, (-m1 * s).to(kind), mask=stored)
        if D == 3:
            tl.store(to + 3 * plane, (m2 * c).to(kind), mask=stored)
            tl.store(to + 3 * plane + frequencies, (-m2 * s).to(kind), mask=stored)


@triton.jit
def tangent_gradients(source, stored, frequencies, m, s, c, ACC: tl.constexpr):
    """From the gradients to d(sin)/dx_k and d(cos)/dx_k: what goes to scale B_k, and to the phase."""
    gs = tl.load(source, mask=stored, other=0.0).to(ACC)
    gc = tl.load(source + frequencies, mask=stored, other=0.0).to(ACC)
    return c * gs - s * gc, -m * (s * gs + c * gc)


@triton.jit
def phase_gradients(
    x, matrix, grad, point, place, exists, known, row, plane, frequencies,
    SCALE: tl.constexpr, D: tl.constexpr, JET: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient to the phase, gradients to scale B_k of the tangents, and the coordinates and columns."""
    x0, x1, x2, m0, m1, m2, s, c = phases(x, matrix, point, place, exists, known, frequencies, SCALE, D, ACC)
    source, stored = grad + point * row + place, exists & known
    gs = tl.load(source, mask=stored, other=0.0).to(ACC)
    gc = tl.load(source + frequencies, mask=stored, other=0.0).to(ACC)
    to_phase = c * gs - s * gc
    q0 = tl.zeros(to_phase.shape, ACC)
    q1 = q0
    q2 = q0
    if JET:
        q0, more = tangent_gradients(source + plane, stored, frequencies, m0, s, c, ACC)
        to_phase += more
        q1, more = tangent_gradients(source + 2 * plane, stored, frequencies, m1, s, c, ACC)
        to_phase += more
        if D == 3:
            q2, more = tangent_gradients(source + 3 * plane, stored, frequencies, m2, s, c, ACC)
            to_phase += more
    return tl.where(stored, to_phase, 0.0), q0, q1, q2, x0, x1, x2, m0, m1, m2


@triton.jit
def fourier_backward_x(
    x, matrix, grad, grad_x, n, row, plane, frequencies,
    SCALE: tl.constexpr, D: tl.constexpr, JET: tl.constexpr, BP: tl.constexpr, BF: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """grad_x (n, D) += the gradient; one program has all frequencies of its points."""
    point = (tl.program_id(0) * BP + tl.arange(0, BP)[:, None]).to(tl.int64)
    exists = point < n
    g0 = tl.zeros((BP, 1), ACC)
    g1 = tl.zeros((BP, 1), ACC)
    g2 = tl.zeros((BP, 1), ACC)
    first = tl.program_id(1) * 0
    while first < frequencies:
        place = first + tl.arange(0, BF)[None, :]
        to_phase, _, _, _, _, _, _, m0, m1, m2 = phase_gradients(
            x,
            matrix,
            grad,
            point,
            place,
            exists,
            place < frequencies,
            row,
            plane,
            frequencies,
            SCALE,
            D,
            JET,
            ACC,
        )
        g0 += tl.sum(to_phase * m0, 1)[:, None]
        g1 += tl.sum(to_phase * m1, 1)[:, None]
        g2 += tl.sum(to_phase * m2, 1)[:, None]
        first += BF
    add_to_row(grad_x, point, exists, g0, g1, g2, D)


@triton.jit
def fourier_backward_matrix(
    x, matrix, grad, partial, n, row, plane, frequencies,
    SCALE: tl.constexpr, D: tl.constexpr, JET: tl.constexpr, BP: tl.constexpr, BF: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """partial (programs, D, frequencies): gradients of B; a program takes every programs-th block of points."""
    place = tl.program_id(1) * BF + tl.arange(0, BF)[None, :]
    known = place < frequencies
    b0 = tl.zeros((1, BF), ACC)
    b1 = tl.zeros((1, BF), ACC)
    b2 = tl.zeros((1, BF), ACC)
    first = tl.program_id(0).to(tl.int64) * BP
    while first < n:
        point = first + tl.arange(0, BP)[:, None]
        to_phase, q0, q1, q2, x0, x1, x2, _, _, _ = phase_gradients(
            x, matrix, grad, point, place, point < n, known, row, plane, frequencies, SCALE, D, JET, ACC
        )
        b0 += tl.sum(to_phase * x0 + q0, 0)[None, :]
        b1 += tl.sum(to_phase * x1 + q1, 0)[None, :]
        b2 += tl.sum(to_phase * x2 + q2, 0)[None, :]
        first += tl.num_programs(0) * BP
    to = partial + tl.program_id(0) * D * frequencies + place
    tl.store(to, b0 * SCALE, mask=known)
    tl.store(to + frequencies, b1 * SCALE, mask=known)
    if D == 3:
        tl.store(to + 2 * frequencies, b2 * SCALE, mask=known)
