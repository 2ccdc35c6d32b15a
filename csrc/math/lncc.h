// Local normalised cross-correlation of one window, from its sums, and the derivatives with respect to the
// sums.
#pragma once

#include <cmath>

#include "math/config.h"

namespace nr {

enum class EpsMode { kProduct = 0, kClamp = 1, kEach = 2 };

template <class T>
struct LnccRule {
    T eps, numerator_eps, flat_tol;
    bool zero_rule;  // windows whose sum is not positive in either image leave the mean
};

template <class T>
struct WindowSums {
    T f, w, ff, ww, fw;
};

template <class T>
struct WindowValue {
    T value;
    bool counted;              // takes part in the mean
    WindowSums<T> derivative;  // all zero in a window that is flat or not counted
};

// inverse_n is 1 / (number of voxels); 0 makes the window flat.
template <EpsMode mode, bool squared, class T>
NR_HD NR_INLINE WindowValue<T> lncc_window(const WindowSums<T>& s, T inverse_n, bool counted,
                                           const LnccRule<T>& rule) {
    const T mean_f = s.f * inverse_n, mean_w = s.w * inverse_n;
    T c = s.fw - mean_f * s.w, vf = s.ff - mean_f * s.f, vw = s.ww - mean_w * s.w;
    const bool positive = (s.f > 0) & (s.w > 0);
    counted = counted & (!rule.zero_rule | positive);
    const bool flat = (vf <= rule.flat_tol * s.ff) | (vw <= rule.flat_tol * s.ww) | (inverse_n == 0);
    const bool used = counted & !flat;

    // d = df * dw (+ eps); the factors' derivatives are slope_f and slope_w.
    const T unit = mode == EpsMode::kEach ? inverse_n : T(1);
    T df = vf, dw = vw, slope_f = unit, slope_w = unit;
    if (mode == EpsMode::kClamp) {
        slope_f = vf >= rule.eps ? T(1) : T(0);
        slope_w = vw >= rule.eps ? T(1) : T(0);
        df = vf >= rule.eps ? vf : rule.eps;
        dw = vw >= rule.eps ? vw : rule.eps;
    } else if (mode == EpsMode::kEach) {
        c *= inverse_n;
        df = vf * inverse_n + rule.eps;
        dw = vw * inverse_n + rule.eps;
    }
    const T d = mode == EpsMode::kProduct ? df * dw + rule.eps : df * dw;
    const T inverse_d = T(1) / d;
    T value, to_c, to_d;  // value and its derivatives with respect to c and d
    if (squared) {
        value = (c * c + rule.numerator_eps) * inverse_d;
        to_c = 2 * c * inverse_d;
        to_d = -value * inverse_d;
    } else {
        to_c = std::sqrt(inverse_d);
        value = (c + rule.numerator_eps) * to_c;
        to_d = T(-0.5) * value * inverse_d;
    }
    // Selects, not products: a flat window may hold 0 / 0.
    const T zero = 0;
    const T fw = used ? to_c * unit : zero;
    const T ff = used ? to_d * dw * slope_f : zero;
    const T ww = used ? to_d * df * slope_w : zero;
    const T f = used ? -mean_w * fw - 2 * mean_f * ff : zero;
    const T w = used ? -mean_f * fw - 2 * mean_w * ww : zero;
    return {used ? value : zero, counted, {f, w, ff, ww, fw}};
}

}  // namespace nr
