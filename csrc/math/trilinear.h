// Linear interpolation between the corners of a cell, and the way a coordinate gets there: torch's
// grid_sample conventions. Corners of a cell are numbered with the last axis fastest; w[k] is the weight of
// the upper side of axis k.
#pragma once

#include <cmath>

#include "math/config.h"

namespace nr {

enum class Padding { kZeros = 0, kBorder = 1, kReflection = 2 };

template <class T>
NR_HD inline T lerp(T a, T b, T w) {
    return a + w * (b - a);
}

// Normalised coordinate in [-1, 1] -> voxel coordinate.
template <class T>
NR_HD inline T unnormalize(T x, T size, bool align_corners) {
    return align_corners ? (x + 1) / 2 * (size - 1) : ((x + 1) * size - 1) / 2;
}

template <class T>
NR_HD inline T unnormalize_slope(T size, bool align_corners) {
    return align_corners ? (size - 1) / 2 : size / 2;
}

// Into [low, high]; the slope becomes 0 where the coordinate was moved or lies on the limit. NaN goes to low.
template <class T>
NR_HD inline T clip(T x, T low, T high, T& slope) {
    slope = (x > low && x < high) ? slope : T(0);
    x = x > low ? x : low;
    return x < high ? x : high;
}

// Folds the line at the limits (voxel centres with align_corners, voxel edges without), any number of times.
template <class T>
NR_HD inline T reflect(T x, T size, bool align_corners, T& slope) {
    const T low = align_corners ? T(0) : T(-0.5);
    const T span = align_corners ? size - 1 : size;
    if (span <= 0) {
        slope = 0;
        return T(0);
    }
    const T signed_distance = x - low;
    const T distance = signed_distance < 0 ? -signed_distance : signed_distance;
    const T flips = std::floor(distance / span);
    const T rest = distance - flips * span;
    const bool odd = flips - 2 * std::floor(flips / 2) != 0;
    slope = (signed_distance < 0) != odd ? -slope : slope;
    return (odd ? span - rest : rest) + low;
}

template <class T>
NR_HD inline T interpolate(const T (&v)[4], const T (&w)[2]) {
    return lerp(lerp(v[0], v[1], w[1]), lerp(v[2], v[3], w[1]), w[0]);
}

template <class T>
NR_HD inline T interpolate(const T (&v)[8], const T (&w)[3]) {
    const T low = lerp(lerp(v[0], v[1], w[2]), lerp(v[2], v[3], w[2]), w[1]);
    const T high = lerp(lerp(v[4], v[5], w[2]), lerp(v[6], v[7], w[2]), w[1]);
    return lerp(low, high, w[0]);
}

// Derivative with respect to the coordinates (voxel units).
template <class T>
NR_HD inline void interpolate_gradient(const T (&v)[4], const T (&w)[2], T (&g)[2]) {
    g[0] = lerp(v[2], v[3], w[1]) - lerp(v[0], v[1], w[1]);
    g[1] = lerp(v[1] - v[0], v[3] - v[2], w[0]);
}

template <class T>
NR_HD inline void interpolate_gradient(const T (&v)[8], const T (&w)[3], T (&g)[3]) {
    const T a = lerp(v[0], v[1], w[2]), b = lerp(v[2], v[3], w[2]);
    const T c = lerp(v[4], v[5], w[2]), d = lerp(v[6], v[7], w[2]);
    g[0] = lerp(c, d, w[1]) - lerp(a, b, w[1]);
    g[1] = lerp(b - a, d - c, w[0]);
    g[2] = lerp(lerp(v[1] - v[0], v[3] - v[2], w[1]), lerp(v[5] - v[4], v[7] - v[6], w[1]), w[0]);
}

// The second derivatives inside a cell, applied to the direction q. Only mixed ones are not 0.
template <class T>
NR_HD inline void interpolate_curvature(const T (&v)[4], const T (&)[2], const T (&q)[2], T (&h)[2]) {
    const T mixed = (v[3] - v[2]) - (v[1] - v[0]);
    h[0] = q[1] * mixed;
    h[1] = q[0] * mixed;
}

template <class T>
NR_HD inline void interpolate_curvature(const T (&v)[8], const T (&w)[3], const T (&q)[3], T (&h)[3]) {
    const T a = v[1] - v[0], b = v[3] - v[2], c = v[5] - v[4], d = v[7] - v[6];  // along the last axis
    const T m01 = lerp((v[6] - v[4]) - (v[2] - v[0]), (v[7] - v[5]) - (v[3] - v[1]), w[2]);
    const T m02 = lerp(c - a, d - b, w[1]);
    const T m12 = lerp(b - a, d - c, w[0]);
    h[0] = q[1] * m01 + q[2] * m02;
    h[1] = q[0] * m01 + q[2] * m12;
    h[2] = q[0] * m02 + q[1] * m12;
}

// The adjoint of lerp.
template <class T>
NR_HD inline void split(T a, T w, T& low, T& high) {
    high = w * a;
    low = a - high;
}

// The adjoint of interpolate: a times the weight of every corner.
template <class T>
NR_HD inline void spread(T a, const T (&w)[2], T (&v)[4]) {
    T low, high;
    split(a, w[0], low, high);
    split(low, w[1], v[0], v[1]);
    split(high, w[1], v[2], v[3]);
}

template <class T>
NR_HD inline void spread(T a, const T (&w)[3], T (&v)[8]) {
    T low, high, l[4], h[4];
    const T rest[2] = {w[1], w[2]};
    split(a, w[0], low, high);
    spread(low, rest, l);
    spread(high, rest, h);
    for (int j = 0; j < 4; ++j) {
        v[j] = l[j];
        v[4 + j] = h[j];
    }
}

// The adjoint of interpolate (a) and interpolate_gradient (q) together.
template <class T>
NR_HD inline void spread(T a, const T (&q)[2], const T (&w)[2], T (&v)[4]) {
    const T high = w[0] * a + q[0], low = a - high;
    T q_low, q_high;
    split(q[1], w[0], q_low, q_high);
    v[1] = w[1] * low + q_low;
    v[0] = low - v[1];
    v[3] = w[1] * high + q_high;
    v[2] = high - v[3];
}

template <class T>
NR_HD inline void spread(T a, const T (&q)[3], const T (&w)[3], T (&v)[8]) {
    const T high = w[0] * a + q[0], low = a - high;
    const T rest[2] = {w[1], w[2]};
    T q_low[2], q_high[2], l[4], h[4];
    split(q[1], w[0], q_low[0], q_high[0]);
    split(q[2], w[0], q_low[1], q_high[1]);
    spread(low, q_low, rest, l);
    spread(high, q_high, rest, h);
    for (int j = 0; j < 4; ++j) {
        v[j] = l[j];
        v[4 + j] = h[j];
    }
}

}  // namespace nr
