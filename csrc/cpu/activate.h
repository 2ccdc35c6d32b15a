// Activations of a block's value channel, with their derivatives.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/loops.h"
#include "math/activation.h"

namespace nr {

// value, slope and (unless null) curvature at z. The switch stands outside the loops, so that each
// vectorises.
template <class T>
inline void activate_block(Activation kind, T omega, const T* z, T* value, T* slope, T* curvature,
                           int64_t size) {
    const auto each = [&](auto function) {
        if (curvature) {
            NR_INDEPENDENT
            for (int64_t i = 0; i < size; ++i) {
                const Activated<T> a = function(z[i]);
                value[i] = a.value;
                slope[i] = a.slope;
                curvature[i] = a.curvature;
            }
        } else {
            NR_INDEPENDENT
            for (int64_t i = 0; i < size; ++i) {
                const Activated<T> a = function(z[i]);
                value[i] = a.value;
                slope[i] = a.slope;
            }
        }
    };
    switch (kind) {
        case Activation::kSine:
            sin_cos_block(z, omega, value, slope, static_cast<int>(size));
            if (curvature) {
                const T factor = -omega * omega;
                NR_INDEPENDENT
                for (int64_t i = 0; i < size; ++i) {
                    slope[i] *= omega;
                    curvature[i] = factor * value[i];
                }
            } else {
                NR_INDEPENDENT
                for (int64_t i = 0; i < size; ++i) slope[i] *= omega;
            }
            break;
        case Activation::kTanh: each([](T x) { return hyperbolic_tangent(x); }); break;
        case Activation::kSoftplus: each([](T x) { return softplus(x); }); break;
        case Activation::kSilu: each([](T x) { return silu(x); }); break;
        default: each([](T x) { return relu(x); }); break;
    }
}

}  // namespace nr
