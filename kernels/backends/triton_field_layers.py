"""What a field's layers are made of, in Triton: activations, products with weights, gradients of weights.

A block of points has 1 + D sets of rows: values, and with a jet (D > 0) their tangents along every coordinate. They
are separate tiles that meet the same tile of weights, so that an activation sees value and tangents side by side.
Offsets (`a`, `w`, ...) are int64 and count elements from the start of a buffer.

Only loops that store nothing are pipelined (kernels themselves have num_stages 1): loads that run ahead would pass the
stores of the layer before.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_encoding_kernels import pick


@triton.jit
def tanh(z, ACC: tl.constexpr):
    """Value, slope and curvature. Near 0, where 1 - exp cancels, from the Taylor sum."""
    NEAR: tl.constexpr = 0.02 if tl.float64 == ACC else 0.35
    size = tl.abs(z)
    e = tl.exp(-2.0 * size)
    q = z * z
    near = 21844.0 / 6081075.0 * q - 1382.0 / 155925.0
    near = ((((near * q + 62.0 / 2835.0) * q - 17.0 / 315.0) * q + 2.0 / 15.0) * q - 1.0 / 3.0) * q * z + z
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(z < 0, -far, far)
    value = tl.where(size < NEAR, near, far)
    slope = 4.0 * e / ((1.0 + e) * (1.0 + e))
    return value, slope, -2.0 * value * slope


@triton.jit
def activated(z, layer, OMEGAS: tl.constexpr, KIND: tl.constexpr, ACC: tl.constexpr):
    """Value, slope and curvature of an activation, as in csrc/math/activation.h."""
    if KIND == "sine":
        omega = pick(OMEGAS, layer, ACC)
        s = tl.sin(omega * z)
        return s, omega * tl.cos(omega * z), -omega * omega * s
    elif KIND == "tanh":
        return tanh(z, ACC)
    elif KIND == "relu":
        return (
            tl.where(z < 0, 0.0, z),
            tl.where(z > 0, 1.0, 0.0).to(ACC),
            tl.zeros(z.shape, ACC),
        )  # NaN passes
    else:
        e = tl.exp(-tl.abs(z))
        share = 1.0 / (1.0 + e)
        logistic = tl.where(z < 0, e * share, share)
        slope = e * share * share
        if KIND == "softplus":
            one_plus = 1.0 + e  # log(1 + e) keeps the digits of a small e that 1 + e rounds off
            rounded = tl.where(one_plus == 1.0, 1.0, one_plus - 1.0)
            log = tl.where(one_plus == 1.0, e, tl.log(one_plus) * (e / rounded))
            return tl.where(z < 0, 0.0, z) + log, logistic, slope
        else:
            return z * logistic, logistic + z * slope, slope * (2.0 + z * (1.0 - 2.0 * logistic))


@triton.jit
def product(a, b, sum_, ACC: tl.constexpr, PLAIN: tl.constexpr):
    """sum_ + a b: float32 and float64 in full precision (no tf32), half types exactly into float32 sums."""
    if PLAIN:  # the interpreter would multiply the bits of bfloat16
        return sum_ + tl.dot(a.to(ACC), b.to(ACC), input_precision="ieee", out_dtype=ACC)
    else:
        return tl.dot(a, b, sum_, input_precision="ieee", out_dtype=ACC)


@triton.jit
def dense(
    work, a, a_plane, a_stride, n_rows, layers, w, n_stride, k_stride, N, K,
    D: tl.constexpr, KMAX: tl.constexpr, WN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    ACC: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Tiles (BP, WN) of A W: A (BP, K) stands in the work buffer, one plane a set of rows, W in the parameters.

    Without a jet the last three tiles mean nothing, with two coordinates the last one.
    """
    point = tl.arange(0, BP)[:, None]
    column = tl.arange(0, WN)[None, :]
    z = tl.zeros((BP, WN), ACC)
    t0 = z
    t1 = z
    t2 = z
    for first in tl.range(0, KMAX, BK, num_stages=2):
        k = first + tl.arange(0, BK)
        at = layers + w + column * n_stride + k[:, None] * k_stride
        weights = tl.load(at, mask=(column < N) & (k[:, None] < K), other=0.0)
        read = (point < n_rows) & (k[None, :] < K)
        source = work + a + point * a_stride + k[None, :]
        z = product(tl.load(source, mask=read, other=0.0), weights, z, ACC, PLAIN)
        if D > 0:
            t0 = product(tl.load(source + a_plane, mask=read, other=0.0), weights, t0, ACC, PLAIN)
            t1 = product(tl.load(source + 2 * a_plane, mask=read, other=0.0), weights, t1, ACC, PLAIN)
        if D > 2:
            t2 = product(tl.load(source + 3 * a_plane, mask=read, other=0.0), weights, t2, ACC, PLAIN)
    return z, t0, t1, t2


@triton.jit
def add_outer(
    work, a, a_plane, a_stride, n_rows, gradient, partial, to, going, N, K,
    D: tl.constexpr, KMAX: tl.constexpr, NMAX: tl.constexpr, TILE: tl.constexpr, BW: tl.constexpr,
    BP: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """partial[to:] (N, K) += sum of gradient^T A over n_rows points and sets of rows; = where it is not `going` yet."""
    plane = BP * BW
    for n0 in range(0, NMAX, TILE):
        n = n0 + tl.arange(0, TILE)[:, None]
        for k0 in range(0, KMAX, TILE):
            k = k0 + tl.arange(0, TILE)[None, :]
            sum_ = tl.zeros((TILE, TILE), ACC)
            for first in tl.range(0, BP, BK, num_stages=2):
                point = first + tl.arange(0, BK)
                upstream = work + gradient + point[None, :] * BW + n
                source = work + a + point[:, None] * a_stride + k
                read = (point[:, None] < n_rows) & (k < K)
                known = (point[None, :] < BP) & (n < N)
                g = tl.load(upstream, mask=known, other=0.0)
                sum_ = product(g, tl.load(source, mask=read, other=0.0), sum_, ACC, PLAIN)
                if D > 0:
                    g = tl.load(upstream + plane, mask=known, other=0.0)
                    sum_ = product(g, tl.load(source + a_plane, mask=read, other=0.0), sum_, ACC, PLAIN)
                    g = tl.load(upstream + 2 * plane, mask=known, other=0.0)
                    sum_ = product(g, tl.load(source + 2 * a_plane, mask=read, other=0.0), sum_, ACC, PLAIN)
                if D > 2:
                    g = tl.load(upstream + 3 * plane, mask=known, other=0.0)
                    sum_ = product(g, tl.load(source + 3 * a_plane, mask=read, other=0.0), sum_, ACC, PLAIN)
            known = (n < N) & (k < K)
            target = partial + to + n * K + k
            before = tl.load(target, mask=known & going, other=0.0)
            tl.store(target, before + sum_, mask=known)


@triton.jit
def add_bias(z, partial, to, going, N, WN: tl.constexpr):
    """partial[to:] (N) += the sum of z over points; = where it is not `going` yet."""
    column = tl.arange(0, WN)[None, :]
    target = partial + to + column
    before = tl.load(target, mask=(column < N) & going, other=0.0)
    tl.store(target, before + tl.sum(z, 0)[None, :], mask=column < N)


@triton.jit
def bias_of(layers, b, N, WN: tl.constexpr, ACC: tl.constexpr):
    column = tl.arange(0, WN)[None, :]
    return tl.load(layers + b + column, mask=column < N, other=0.0).to(ACC)


@triton.jit
def places(BP: tl.constexpr, BW: tl.constexpr, WN: tl.constexpr):
    """Offsets of a tile (BP, WN) in a plane (BP, BW) of a program's own rows."""
    return tl.arange(0, BP)[:, None] * BW + tl.arange(0, WN)[None, :]


@triton.jit
def put(buffer, at, v, t0, t1, t2, D: tl.constexpr, BW: tl.constexpr, BP: tl.constexpr, WN: tl.constexpr):
    """Stores all sets of rows in a slot of a program's own."""
    to = buffer + at + places(BP, BW, WN)
    kind = buffer.dtype.element_ty
    tl.store(to, v.to(kind))
    if D > 0:
        tl.store(to + BP * BW, t0.to(kind))
        tl.store(to + 2 * BP * BW, t1.to(kind))
    if D > 2:
        tl.store(to + 3 * BP * BW, t2.to(kind))


@triton.jit
def get(buffer, at, D: tl.constexpr, BW: tl.constexpr, BP: tl.constexpr, WN: tl.constexpr, ACC: tl.constexpr):
    """What ``put`` has stored; without a jet the last three tiles mean nothing."""
    source = buffer + at + places(BP, BW, WN)
    v = tl.load(source).to(ACC)
    t0 = v
    t1 = v
    t2 = v
    if D > 0:
        t0 = tl.load(source + BP * BW).to(ACC)
        t1 = tl.load(source + 2 * BP * BW).to(ACC)
    if D > 2:
        t2 = tl.load(source + 3 * BP * BW).to(ACC)
    return v, t0, t1, t2


@triton.jit
def along(a0, a1, a2, b0, b1, b2, D: tl.constexpr):
    """sum_k a_k b_k over the tangents there are; 0 without."""
    if D > 2:
        return a0 * b0 + a1 * b1 + a2 * b2
    elif D > 0:
        return a0 * b0 + a1 * b1
    else:
        return a0 * 0.0
