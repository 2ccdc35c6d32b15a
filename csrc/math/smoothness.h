// Mean squared first and second differences of a field: what a squared difference weighs in the mean, and the
// second differences that a voxel takes part in. Axes are z, y, x; 2-D is one plane.
#pragma once

#include "math/config.h"

namespace nr {

// Of n[0] n[1] n[2] voxels in `fields` fields, spacing h; dimensions: axes that the mean is taken over. 0
// along an axis of one voxel.
inline void diffusion_weights(double fields, const double (&n)[3], const double (&h)[3], int dimensions,
                              double (&weight)[3]) {
    for (int k = 0; k < 3; ++k) {
        const double count = fields * n[(k + 1) % 3] * n[(k + 2) % 3] * (n[k] - 1);
        weight[k] = count > 0 ? 1 / (dimensions * count * h[k] * h[k]) : 0;
    }
}

// Of a squared difference along axis k, and of one along the two other axes, which counts twice; 0 where
// there are none.
inline void bending_weights(double fields, const double (&n)[3], const double (&h)[3], double (&pure)[3],
                            double (&mixed)[3]) {
    for (int k = 0; k < 3; ++k) {
        const int a = (k + 1) % 3, b = (k + 2) % 3;
        const double along = fields * n[a] * n[b] * (n[k] - 2);
        const double across = fields * n[k] * (n[a] - 1) * (n[b] - 1);
        pure[k] = along > 0 ? 1 / (along * h[k] * h[k] * h[k] * h[k]) : 0;
        mixed[k] = across > 0 ? 2 / (across * h[a] * h[a] * h[b] * h[b]) : 0;
    }
}

// `at` is the middle one of three neighbours.
template <class T>
NR_HD NR_INLINE T second_difference(T before, T at, T after) {
    return (after - at) - (at - before);
}

// Where a voxel stands on an axis of n voxels, `step` elements apart: which of the differences around it
// exist.
template <class T, class Index>
struct AxisPlace {
    // 1 or 0: second differences in the middle of which stand its neighbour before, itself, and the one
    // after; first differences from the neighbour before, and to the one after
    T before, at, after, low, high;
    Index m2, m1, p1, p2;  // to neighbours; 0 where there is none, and then its weight is 0

    NR_HD AxisPlace(Index i, Index n, Index step)
        : before(i >= 2 && n > 2),
          at(i >= 1 && i + 1 < n),
          after(i + 2 < n),
          low(i > 0),
          high(i + 1 < n),
          m2(i > 1 ? -2 * step : 0),
          m1(i > 0 ? -step : 0),
          p1(i + 1 < n ? step : 0),
          p2(i + 2 < n ? 2 * step : 0) {}

    // The adjoint of the second differences along the axis.
    NR_HD NR_INLINE T pure(const T* u) const {
        const T c = u[0], a = u[m1], b = u[p1];
        return before * second_difference(u[m2], a, c) - 2 * (at * second_difference(a, c, b)) +
               after * second_difference(c, b, u[p2]);
    }
};

// The adjoint of the mixed differences along two axes.
template <class T, class Index>
NR_HD NR_INLINE T mixed_adjoint(const AxisPlace<T, Index>& y, const AxisPlace<T, Index>& x, const T* u) {
    const T *up = u + y.m1, *down = u + y.p1;
    const T left = x.low * (u[0] - u[x.m1]), right = x.high * (u[x.p1] - u[0]);
    const T low = (left - x.low * (up[0] - up[x.m1])) - (right - x.high * (up[x.p1] - up[0]));
    const T high = (x.low * (down[0] - down[x.m1]) - left) - (x.high * (down[x.p1] - down[0]) - right);
    return y.low * low - y.high * high;
}

}  // namespace nr
