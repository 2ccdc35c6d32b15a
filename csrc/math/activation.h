// Activations with their first and second derivatives: a jet carries tangents through a layer by the slope,
// its backward needs the curvature.
#pragma once

#include <cmath>

#include "math/config.h"
#include "math/exponential.h"
#include "math/sincos.h"

namespace nr {

enum class Activation { kRelu = 0, kSine = 1, kTanh = 2, kSoftplus = 3, kSilu = 4 };  // as in kernels/spec.py

template <class T>
struct Activated {
    T value, slope, curvature;
};

template <class T>
NR_HD inline Activated<T> relu(T z) {
    return {z < 0 ? T(0) : z, z > 0 ? T(1) : T(0), T(0)};  // NaN passes
}

// sin(omega z)
template <class T>
NR_HD inline Activated<T> sine(T omega, T z) {
    T s, c;
    sin_cos(omega * z, s, c);
    return {s, omega * c, -omega * omega * s};
}

// From exp(-2 |z|), but near 0, where 1 - exp cancels, from the Taylor sum.
template <class T>
NR_HD inline Activated<T> hyperbolic_tangent(T z) {
    const T size = z < 0 ? -z : z;
    const T e = exponential(T(-2) * size);
    const T q = z * z;
    const T near =
        z * (1 + q * (T(-1. / 3) +
                      q * (T(2. / 15) +
                           q * (T(-17. / 315) +
                                q * (T(62. / 2835) + q * (T(-1382. / 155925) + q * T(21844. / 6081075)))))));
    const T far = (1 - e) / (1 + e);
    const T value = size < T(0.35) ? near : (z < 0 ? -far : far);
    const T slope = 4 * e / ((1 + e) * (1 + e));
    return {value, slope, -2 * value * slope};
}

template <>
NR_HD inline Activated<double> hyperbolic_tangent<double>(double z) {
    const double value = std::tanh(z);
    const double slope = 1 - value * value;
    return {value, slope, -2 * value * slope};
}

// 1 / (1 + exp(-z)) and its derivative, from e = exp(-|z|)
template <class T>
NR_HD inline void logistic(T z, T e, T& value, T& slope) {
    const T share = 1 / (1 + e);
    value = z < 0 ? e * share : share;
    slope = e * share * share;
}

template <class T>
NR_HD inline Activated<T> softplus(T z) {
    const T e = exponential(z < 0 ? z : -z);
    T value, slope;
    logistic(z, e, value, slope);
    return {(z < 0 ? T(0) : z) + log_one_plus(e), value, slope};
}

template <class T>
NR_HD inline Activated<T> silu(T z) {
    const T e = exponential(z < 0 ? z : -z);
    T s, ds;
    logistic(z, e, s, ds);
    return {z * s, s + z * ds, ds * (2 + z * (1 - 2 * s))};
}

template <class T>
NR_HD inline Activated<T> activated(Activation kind, T omega, T z) {
    switch (kind) {
        case Activation::kSine: return sine(omega, z);
        case Activation::kTanh: return hyperbolic_tangent(z);
        case Activation::kSoftplus: return softplus(z);
        case Activation::kSilu: return silu(z);
        default: return relu(z);
    }
}

}  // namespace nr
