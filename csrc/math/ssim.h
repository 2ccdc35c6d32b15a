// Structural similarity of one window, from its weighted moments, and the derivatives with respect to the
// moments.
#pragma once

#include "math/config.h"

namespace nr {

template <class T>
struct SsimMoments {
    T f, w, ff, ww, fw;  // weighted sums; the weights sum to 1
};

template <class T>
struct SsimValue {
    T value;
    T to_f, to_w, to_square, to_product;  // derivatives; those with respect to ff and ww are the same
};

template <class T>
NR_HD NR_INLINE SsimValue<T> ssim_window(const SsimMoments<T>& m, T c1, T c2) {
    const T mean_product = m.f * m.w, mean_square = m.f * m.f + m.w * m.w;
    const T a1 = 2 * mean_product + c1, a2 = 2 * (m.fw - mean_product) + c2;
    const T b1 = mean_square + c1, b2 = m.ff + m.ww - mean_square + c2;
    const T inverse_1 = T(1) / b1, inverse_2 = T(1) / b2;
    const T inverse = inverse_1 * inverse_2, value = a1 * a2 * inverse;
    const T across = 2 * (a2 - a1) * inverse, along = 2 * value * (inverse_1 - inverse_2);
    return {value, across * m.w - along * m.f, across * m.f - along * m.w, -value * inverse_2,
            2 * a1 * inverse};
}

}  // namespace nr
