"""SSIM in Triton: weighted sums tap by tap along one axis, from images to windows and from derivatives to gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_box import narrow, wide


@triton.jit
def tap_tile(
    outer, blocks, n_in, n_out, inner, columns, first, block,
    BO: tl.constexpr, W2: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """A tile of `block` outputs along the axis: their first taps (place on the axis, offset), their offsets and
    which of them exist. Tensors are (outer, n, inner)."""
    row = tl.program_id(0) // columns * BO + tl.arange(0, BO)[:, None, None]
    lane = tl.arange(0, W2)[None, :, None]
    column = tl.program_id(0) % columns * BI + tl.arange(0, BI)[None, None, :]
    place = row % blocks * block + lane
    line = (row // blocks).to(tl.int64)
    exists = (row < outer * blocks) & (lane < block) & (place < n_out) & (column < inner)
    start = first + place
    return start, (line * n_in + start) * inner + column, (line * n_out + place) * inner + column, exists


@triton.jit
def similarity(mf, mw, mff, mww, mfw, C1: tl.constexpr, C2: tl.constexpr):
    """Value of a window, and its derivatives to mf, mw, to mff and mww (one number) and to mfw."""
    a, b = 2.0 * mf * mw + C1, 2.0 * (mfw - mf * mw) + C2
    p, q = mf * mf + mw * mw + C1, (mff - mf * mf) + (mww - mw * mw) + C2
    value = a * b / (p * q)
    cross = 2.0 * a / (p * q)
    square = -value / q
    f = 2.0 * mw * b / (p * q) - 2.0 * mf * value / p - mw * cross - 2.0 * mf * square
    w = 2.0 * mf * b / (p * q) - 2.0 * mw * value / p - mf * cross - 2.0 * mw * square
    return value, f, w, square, cross


@triton.jit
def ssim_windows_pass(
    fixed, warped, weights, source, source_field, target, target_field, values, maps, map_field, sums, block,
    outer, blocks, n_in, n_out, inner, columns, first, window,
    BO: tl.constexpr, W2: tl.constexpr, BI: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    TAPS: tl.constexpr, VALUES: tl.constexpr, MAPS: tl.constexpr, TOTALS: tl.constexpr,
    C1: tl.constexpr, C2: tl.constexpr,
):  # fmt: skip
    """Weighted sums of f, w, ff, ww, fw along one axis, in float64; products in the first pass, the formula in the
    last. Maps: derivatives to the sums w, ff or ww, fw, then f."""
    start, tap, to, exists = tap_tile(outer, blocks, n_in, n_out, inner, columns, first, block, BO, W2, BI)
    mf = tl.zeros(to.shape, tl.float64)
    mw, mff, mww, mfw = mf, mf, mf, mf
    for t in range(TAPS):
        weight = tl.load(weights + t)
        there = exists & (start + t >= 0) & (start + t < n_in)
        if FIRST:
            f, w = wide(fixed, tap, there), wide(warped, tap, there)
            ff, ww, fw = f * f, w * w, f * w
        else:
            stored = source + tap
            f = tl.load(stored, mask=there, other=0.0)
            w = tl.load(stored + source_field, mask=there, other=0.0)
            ff = tl.load(stored + 2 * source_field, mask=there, other=0.0)
            ww = tl.load(stored + 3 * source_field, mask=there, other=0.0)
            fw = tl.load(stored + 4 * source_field, mask=there, other=0.0)
        mf += weight * f
        mw += weight * w
        mff += weight * ff
        mww += weight * ww
        mfw += weight * fw
        tap += inner
    if not LAST:
        tl.store(target + to, mf, mask=exists)
        tl.store(target + target_field + to, mw, mask=exists)
        tl.store(target + 2 * target_field + to, mff, mask=exists)
        tl.store(target + 3 * target_field + to, mww, mask=exists)
        tl.store(target + 4 * target_field + to, mfw, mask=exists)
    else:
        value, df, dw, square, cross = similarity(mf, mw, mff, mww, mfw, C1, C2)
        if VALUES:
            narrow(values, to, value, exists)
        if TOTALS:
            tl.store(sums + tl.program_id(0), tl.sum(tl.where(exists, value, 0.0)))
        if MAPS >= 3:
            narrow(maps, to, dw, exists)
            narrow(maps + map_field, to, square, exists)
            narrow(maps + 2 * map_field, to, cross, exists)
        if MAPS == 4:
            narrow(maps + 3 * map_field, to, df, exists)


@triton.jit
def ssim_gradients_pass(
    source, own, square, cross, other, upstream, weights, target, target_field,
    image, partner, to_image, to_partner, grad, windows, block,
    outer, blocks, n_in, n_out, inner, columns, first, window,
    BO: tl.constexpr, W2: tl.constexpr, BI: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    TAPS: tl.constexpr, BOTH: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """Weighted sums of derivatives along one axis, in float64; in the last pass the gradient of an image, or of
    both. `own` .. `other` are the places of the fields in `source`, written to `target` in this order."""
    start, tap, to, exists = tap_tile(outer, blocks, n_in, n_out, inner, columns, first, block, BO, W2, BI)
    s = tl.zeros(to.shape, tl.float64)
    ss, sp, p = s, s, s
    for t in range(TAPS):
        weight = tl.load(weights + t)
        there = exists & (start + t >= 0) & (start + t < n_in)
        weighed = tl.zeros(to.shape, tl.float64) + weight
        if FIRST and not MEAN:
            weighed *= wide(upstream, tap, there)
        s += weighed * tl.load(source + own + tap, mask=there, other=0.0)  # float32 maps become float64 here
        ss += weighed * tl.load(source + square + tap, mask=there, other=0.0)
        sp += weighed * tl.load(source + cross + tap, mask=there, other=0.0)
        if BOTH:
            p += weighed * tl.load(source + other + tap, mask=there, other=0.0)
        tap += inner
    if not LAST:
        tl.store(target + to, s, mask=exists)
        tl.store(target + target_field + to, ss, mask=exists)
        tl.store(target + 2 * target_field + to, sp, mask=exists)
        if BOTH:
            tl.store(target + 3 * target_field + to, p, mask=exists)
    else:
        scale = tl.full(to.shape, 1.0, tl.float64)
        if MEAN:
            scale *= tl.load(grad).to(tl.float64) / windows
        i, j = wide(image, to, exists), wide(partner, to, exists)
        narrow(to_image, to, scale * (s + 2.0 * i * ss + j * sp), exists)
        if BOTH:
            narrow(to_partner, to, scale * (p + 2.0 * j * ss + i * sp), exists)
