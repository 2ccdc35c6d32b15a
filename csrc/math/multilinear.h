// Linear interpolation between the corners of a cell: value, differences along the axes, mixed differences,
// and the adjoint. Bit N - 1 - d of a corner's number is its step along axis d; w[d] is the upper corner's
// weight along axis d. Differences are to w: a caller multiplies by dw/dx.
#pragma once

#include "math/config.h"

namespace nr {

template <class T>
NR_HD NR_INLINE T between(T low, T high, T w) {
    return low + w * (high - low);
}

template <class T, int N>
struct Multilinear;

template <class T>
struct Multilinear<T, 2> {
    static NR_HD NR_INLINE T value(const T (&e)[4], const T (&w)[2]) {
        return between(between(e[0], e[1], w[1]), between(e[2], e[3], w[1]), w[0]);
    }

    // returns the value
    static NR_HD NR_INLINE T differences(const T (&e)[4], const T (&w)[2], T (&d)[2]) {
        const T low = between(e[0], e[1], w[1]), high = between(e[2], e[3], w[1]);
        d[0] = high - low;
        d[1] = between(e[1] - e[0], e[3] - e[2], w[0]);
        return low + w[0] * d[0];
    }

    // mixed[d + k - 1]: along the axes d and k
    static NR_HD NR_INLINE void mixed(const T (&e)[4], const T (&)[2], T (&m)[1]) {
        m[0] = e[3] - e[2] - e[1] + e[0];
    }

    // What the gradients of value and differences give to the corners.
    static NR_HD NR_INLINE void adjoint(const T (&w)[2], T g, const T (&h)[2], T (&e)[4]) {
        const T high = g * w[0] + h[0], low = g - high;
        const T along_high = h[1] * w[0], along_low = h[1] - along_high;
        e[1] = low * w[1] + along_low;
        e[0] = low - e[1];
        e[3] = high * w[1] + along_high;
        e[2] = high - e[3];
    }
};

template <class T>
struct Multilinear<T, 3> {
    static NR_HD NR_INLINE T value(const T (&e)[8], const T (&w)[3]) {
        const T low = between(between(e[0], e[1], w[2]), between(e[2], e[3], w[2]), w[1]);
        const T high = between(between(e[4], e[5], w[2]), between(e[6], e[7], w[2]), w[1]);
        return between(low, high, w[0]);
    }

    static NR_HD NR_INLINE T differences(const T (&e)[8], const T (&w)[3], T (&d)[3]) {
        const T d0 = e[1] - e[0], d1 = e[3] - e[2], d2 = e[5] - e[4], d3 = e[7] - e[6];
        const T a0 = e[0] + w[2] * d0, a1 = e[2] + w[2] * d1, a2 = e[4] + w[2] * d2, a3 = e[6] + w[2] * d3;
        const T low_step = a1 - a0, high_step = a3 - a2;
        const T low = a0 + w[1] * low_step, high = a2 + w[1] * high_step;
        d[0] = high - low;
        d[1] = between(low_step, high_step, w[0]);
        d[2] = between(between(d0, d1, w[1]), between(d2, d3, w[1]), w[0]);
        return low + w[0] * d[0];
    }

    static NR_HD NR_INLINE void mixed(const T (&e)[8], const T (&w)[3], T (&m)[3]) {
        const T d0 = e[1] - e[0], d1 = e[3] - e[2], d2 = e[5] - e[4], d3 = e[7] - e[6];
        m[0] = between(e[6] - e[4] - e[2] + e[0], e[7] - e[5] - e[3] + e[1], w[2]);
        m[1] = between(d2 - d0, d3 - d1, w[1]);
        m[2] = between(d1 - d0, d3 - d2, w[0]);
    }

    static NR_HD NR_INLINE void adjoint(const T (&w)[3], T g, const T (&h)[3], T (&e)[8]) {
        const T high = g * w[0] + h[0], low = g - high;
        const T high1 = h[1] * w[0], low1 = h[1] - high1;
        const T high2 = h[2] * w[0], low2 = h[2] - high2;
        const T a1 = low * w[1] + low1, a0 = low - a1, d1 = low2 * w[1], d0 = low2 - d1;
        const T a3 = high * w[1] + high1, a2 = high - a3, d3 = high2 * w[1], d2 = high2 - d3;
        e[1] = a0 * w[2] + d0;
        e[0] = a0 - e[1];
        e[3] = a1 * w[2] + d1;
        e[2] = a1 - e[3];
        e[5] = a2 * w[2] + d2;
        e[4] = a2 - e[5];
        e[7] = a3 * w[2] + d3;
        e[6] = a3 - e[7];
    }
};

}  // namespace nr
