"""LNCC in Triton: one kernel for the passes from images to windows, one for those from derivatives to gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_box import box_sum, box_tile, narrow, wide


@triton.jit
def window_value(
    sf, sw, sff, sww, sfw, inverse_n, counted, EPS: tl.constexpr, NUMERATOR: tl.constexpr, FLAT: tl.constexpr,
    ZERO_RULE: tl.constexpr, MODE: tl.constexpr, SQUARED: tl.constexpr,
):  # fmt: skip
    """The formula of csrc/math/lncc.h: value, whether it counts, derivatives to sf, sw, sff, sww, sfw."""
    mean_f, mean_w = sf * inverse_n, sw * inverse_n
    c, vf, vw = sfw - mean_f * sw, sff - mean_f * sf, sww - mean_w * sw
    if ZERO_RULE:
        counted = counted & (sf > 0) & (sw > 0)
    used = counted & ~((vf <= FLAT * sff) | (vw <= FLAT * sww) | (inverse_n == 0))
    # Harmless numbers in, zero out: a flat window may hold 0 / 0.
    c, vf, vw = tl.where(used, c, 0.0), tl.where(used, vf, 1.0), tl.where(used, vw, 1.0)
    unit = tl.full(vf.shape, 1.0, tl.float64)
    df, dw, slope_f, slope_w = vf, vw, unit, unit
    if MODE == "clamp":
        slope_f, slope_w = tl.where(vf >= EPS, unit, 0.0), tl.where(vw >= EPS, unit, 0.0)
        df, dw = tl.where(vf >= EPS, vf, EPS), tl.where(vw >= EPS, vw, EPS)
    if MODE == "each":
        unit = tl.where(used, inverse_n, 1.0)
        slope_f, slope_w = unit, unit
        c, df, dw = c * unit, vf * unit + EPS, vw * unit + EPS
    d = df * dw
    if MODE == "product":
        d += EPS
    inverse_d = 1.0 / d
    if SQUARED:
        value = (c * c + NUMERATOR) * inverse_d
        to_c = 2.0 * c * inverse_d
        to_d = -value * inverse_d
    else:
        to_c = tl.sqrt(inverse_d)
        value = (c + NUMERATOR) * to_c
        to_d = -0.5 * value * inverse_d
    fw = tl.where(used, to_c * unit, 0.0)
    ff = tl.where(used, to_d * dw * slope_f, 0.0)
    ww = tl.where(used, to_d * df * slope_w, 0.0)
    f = tl.where(used, -mean_w * fw - 2.0 * mean_f * ff, 0.0)
    w = tl.where(used, -mean_f * fw - 2.0 * mean_w * ww, 0.0)
    return tl.where(used, value, 0.0), counted, f, w, ff, ww, fw


@triton.jit
def stored_sum(pointer, near, near_exists, far, far_exists):
    """Box sums of a field that an earlier pass has stored."""
    a = tl.load(pointer + near, mask=near_exists, other=0.0)
    b = tl.load(pointer + far, mask=far_exists, other=0.0)
    return tl.cumsum(a, 1, reverse=True) + tl.cumsum(
        b, 1
    )  # box_sum, spared a call that the interpreter pays for


@triton.jit
def windows_pass(
    fixed, warped, mask, source, source_field, target, target_field, centres, values, maps, map_field,
    sums, counts, map_z, map_y, map_x, mask_z, mask_y, mask_x, centre_z, centre_y, centre_x,
    outer, blocks, n_in, n_out, inner, columns, first, window,
    BO: tl.constexpr, W2: tl.constexpr, BI: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    MASKED: tl.constexpr, VALUES: tl.constexpr, MAPS: tl.constexpr, TOTALS: tl.constexpr,
    INVERSE_N: tl.constexpr, EPS: tl.constexpr, NUMERATOR: tl.constexpr, FLAT: tl.constexpr,
    ZERO_RULE: tl.constexpr, MODE: tl.constexpr, SQUARED: tl.constexpr,
):  # fmt: skip
    """Box sums of f, w, ff, ww, fw (and of the mask) along one axis, in float64.

    The first pass makes the products from the images; the last one turns sums into values, MAPS derivatives (w,
    ww, fw, then f, ff) and one partial sum a program. What lies between goes from `source` to `target`, where
    fields stand one behind the other.
    """
    near, near_exists, far, far_exists, to, exists = box_tile(
        outer, blocks, n_in, n_out, inner, columns, first, window, BO, W2, BI
    )
    if FIRST:
        if MASKED:
            near_exists = near_exists & (tl.load(mask + near, mask=near_exists, other=0) != 0)
            far_exists = far_exists & (tl.load(mask + far, mask=far_exists, other=0) != 0)
            n = box_sum(near_exists.to(tl.float64), far_exists.to(tl.float64))
        f, w = wide(fixed, near, near_exists), wide(warped, near, near_exists)
        g, v = wide(fixed, far, far_exists), wide(warped, far, far_exists)
        sf, sw, sff = box_sum(f, g), box_sum(w, v), box_sum(f * f, g * g)
        sww, sfw = box_sum(w * w, v * v), box_sum(f * w, g * v)
    else:
        sf = stored_sum(source, near, near_exists, far, far_exists)
        sw = stored_sum(source + source_field, near, near_exists, far, far_exists)
        sff = stored_sum(source + 2 * source_field, near, near_exists, far, far_exists)
        sww = stored_sum(source + 3 * source_field, near, near_exists, far, far_exists)
        sfw = stored_sum(source + 4 * source_field, near, near_exists, far, far_exists)
        if MASKED:
            n = stored_sum(source + 5 * source_field, near, near_exists, far, far_exists)
    if not LAST:
        tl.store(target + to, sf, mask=exists)
        tl.store(target + target_field + to, sw, mask=exists)
        tl.store(target + 2 * target_field + to, sff, mask=exists)
        tl.store(target + 3 * target_field + to, sww, mask=exists)
        tl.store(target + 4 * target_field + to, sfw, mask=exists)
        if MASKED:
            tl.store(target + 5 * target_field + to, n, mask=exists)
    else:
        counted = exists
        if MASKED:
            x, row = to % map_x, to // map_x
            y, plane = row % map_y, row // map_y
            z, channel = plane % map_z, plane // map_z
            centre = (channel * mask_z + z + centre_z) * mask_y + y + centre_y
            centre = centre * mask_x + x + centre_x
            counted = exists & (tl.load(centres + centre, mask=exists, other=0) != 0)
            inverse_n = tl.where(n >= 1.5, 1.0 / tl.where(n >= 1.5, n, 1.0), 0.0)  # counts are whole numbers
        else:
            inverse_n = tl.full(sf.shape, INVERSE_N, tl.float64)
        value, counted, df, dw, dff, dww, dfw = window_value(
            sf, sw, sff, sww, sfw, inverse_n, counted, EPS, NUMERATOR, FLAT, ZERO_RULE, MODE, SQUARED
        )
        if VALUES:
            narrow(values, to, value, exists)
        if TOTALS:
            tl.store(sums + tl.program_id(0), tl.sum(value))
            tl.store(counts + tl.program_id(0), tl.sum(counted.to(tl.float64)))
        if MAPS >= 3:
            narrow(maps, to, dw, exists)
            narrow(maps + map_field, to, dww, exists)
            narrow(maps + 2 * map_field, to, dfw, exists)
        if MAPS == 5:
            narrow(maps + 3 * map_field, to, df, exists)
            narrow(maps + 4 * map_field, to, dff, exists)


@triton.jit
def derivative_sum(
    pointer, upstream, near, near_exists, far, far_exists, STORED: tl.constexpr, WEIGHED: tl.constexpr
):
    """Box sums of a map of derivatives, weighed by the gradient that comes in where there is a map of it."""
    if STORED:
        return stored_sum(pointer, near, near_exists, far, far_exists)
    else:
        a, b = wide(pointer, near, near_exists), wide(pointer, far, far_exists)
        if WEIGHED:
            a, b = a * wide(upstream, near, near_exists), b * wide(upstream, far, far_exists)
        return tl.cumsum(a, 1, reverse=True) + tl.cumsum(b, 1)


@triton.jit
def gradients_pass(
    source, own, own_square, cross, other, other_square, upstream, target, target_field,
    image, partner, mask, to_image, to_partner, grad, count,
    outer, blocks, n_in, n_out, inner, columns, first, window,
    BO: tl.constexpr, W2: tl.constexpr, BI: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    MASKED: tl.constexpr, BOTH: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """Box sums of derivatives along one axis, in float64; in the last pass the gradient of an image, or of both.

    `own` .. `other_square` are the places of the fields in `source`: derivatives to the image's sum and sum of
    squares, to the sum of products, and to the partner's sums. They are written to `target` in this order.
    """
    near, near_exists, far, far_exists, to, exists = box_tile(
        outer, blocks, n_in, n_out, inner, columns, first, window, BO, W2, BI
    )
    STORED: tl.constexpr = not FIRST
    WEIGHED: tl.constexpr = FIRST and not MEAN
    s = derivative_sum(source + own, upstream, near, near_exists, far, far_exists, STORED, WEIGHED)
    ss = derivative_sum(source + own_square, upstream, near, near_exists, far, far_exists, STORED, WEIGHED)
    sp = derivative_sum(source + cross, upstream, near, near_exists, far, far_exists, STORED, WEIGHED)
    if BOTH:
        p = derivative_sum(source + other, upstream, near, near_exists, far, far_exists, STORED, WEIGHED)
        pp = derivative_sum(
            source + other_square, upstream, near, near_exists, far, far_exists, STORED, WEIGHED
        )
    if not LAST:
        tl.store(target + to, s, mask=exists)
        tl.store(target + target_field + to, ss, mask=exists)
        tl.store(target + 2 * target_field + to, sp, mask=exists)
        if BOTH:
            tl.store(target + 3 * target_field + to, p, mask=exists)
            tl.store(target + 4 * target_field + to, pp, mask=exists)
    else:
        scale = tl.full(to.shape, 1.0, tl.float64)
        if MEAN:
            scale *= tl.load(grad).to(tl.float64) / tl.maximum(tl.load(count), 1.0)
        inside = exists
        if MASKED:  # outside the mask values do not matter and gradients are 0
            inside = exists & (tl.load(mask + to, mask=exists, other=0) != 0)
        i, j = wide(image, to, inside), wide(partner, to, inside)
        slope = scale * (s + 2.0 * i * ss + j * sp)
        narrow(to_image, to, tl.where(inside, slope, 0.0), exists)
        if BOTH:
            slope = scale * (p + 2.0 * j * pp + i * sp)
            narrow(to_partner, to, tl.where(inside, slope, 0.0), exists)
