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

}  // namespace nr
