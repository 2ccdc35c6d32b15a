// Activations of a block: value channel and derivative channels, forward and backward. A channel is `size`
// values.
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
            NR_INDEPENDENT
            for (int64_t i = 0; i < size; ++i) slope[i] *= omega;
            if (curvature) {
                const T factor = -omega * omega;
                NR_INDEPENDENT
                for (int64_t i = 0; i < size; ++i) curvature[i] = factor * value[i];
            }
            break;
        case Activation::kTanh: each([](T x) { return hyperbolic_tangent(x); }); break;
        case Activation::kSoftplus: each([](T x) { return softplus(x); }); break;
        case Activation::kSilu: each([](T x) { return silu(x); }); break;
        default: each([](T x) { return relu(x); }); break;
    }
}

// Derivative channels behind the activation: out_k = slope t_k.
template <class T>
inline void activate_tangents(int tangents, const T* slope, const T* t, T* out, int64_t size) {
    for (int k = 0; k < tangents; ++k) {
        const T* from = t + k * size;
        T* to = out + k * size;
        NR_INDEPENDENT
        for (int64_t i = 0; i < size; ++i) to[i] = slope[i] * from[i];
    }
}

// In place, from the gradient behind the activation to the gradient before it: zbar = slope Vbar + curvature
// sum_k t_k Tbar_k, tbar_k = slope Tbar_k. g: value channel, then the tangents'.
template <class T>
inline void activation_gradient(int tangents, const T* slope, const T* curvature, const T* t, T* g,
                                int64_t size) {
    NR_INDEPENDENT
    for (int64_t i = 0; i < size; ++i) g[i] *= slope[i];
    for (int k = 0; k < tangents; ++k) {
        const T* tk = t + k * size;
        T* gk = g + (k + 1) * size;
        NR_INDEPENDENT
        for (int64_t i = 0; i < size; ++i) {
            g[i] += curvature[i] * tk[i] * gk[i];
            gk[i] *= slope[i];
        }
    }
}

// out = gate * h in all channels (product rule).
template <class T>
inline void gate_block(int tangents, const T* gate, const T* h, T* out, int64_t size) {
    for (int k = 0; k < tangents; ++k) {
        const int64_t at = (k + 1) * size;
        NR_INDEPENDENT
        for (int64_t i = 0; i < size; ++i) out[at + i] = gate[i] * h[at + i] + gate[at + i] * h[i];
    }
    NR_INDEPENDENT
    for (int64_t i = 0; i < size; ++i) out[i] = gate[i] * h[i];
}

// From the gradient g of gate * h: writes the gate's, turns g into h's.
template <class T>
inline void gate_gradient(int tangents, const T* gate, const T* h, T* g, T* grad_gate, int64_t size) {
    NR_INDEPENDENT
    for (int64_t i = 0; i < size; ++i) {
        grad_gate[i] = h[i] * g[i];
        g[i] *= gate[i];
    }
    for (int k = 0; k < tangents; ++k) {
        const int64_t at = (k + 1) * size;
        NR_INDEPENDENT
        for (int64_t i = 0; i < size; ++i) {
            const T gk = g[at + i];
            grad_gate[i] += h[at + i] * gk;
            grad_gate[at + i] = h[i] * gk;
            g[i] += gate[at + i] * gk;
            g[at + i] = gate[i] * gk;
        }
    }
}

}  // namespace nr
