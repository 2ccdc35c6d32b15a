// What lies around a layer's activation in all its channels at once, in one pass over memory: derivatives
// behind the activation, gates and skips, forward and backward. A channel is `size` values, whole vectors;
// channel 0 is the value, channel 1 + k the derivative to coordinate k.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/simd.h"

namespace nr {

// Runs body(tangents) with their number known to the compiler: 0, 2 or 3.
template <class Body>
inline void with_tangents(int tangents, Body&& body) {
    if (tangents == 3)
        body(std::integral_constant<int, 3>{});
    else if (tangents == 2)
        body(std::integral_constant<int, 2>{});
    else
        body(std::integral_constant<int, 0>{});
}

// Runs body(gated, skips) with what is not null known to the compiler.
template <class T, class Body>
inline void with_gate_and_skip(const T* gate, const T* skip, Body&& body) {
    using No = std::false_type;
    using Yes = std::true_type;
    if (gate)
        skip ? body(Yes{}, Yes{}) : body(Yes{}, No{});
    else
        skip ? body(No{}, Yes{}) : body(No{}, No{});
}

// Forward. t: derivatives before the activation (channels 1 on); h: its value, and derivatives h_k = slope
// t_k are written. out = gate h by the product rule, plus skip; without a gate (null) out is h itself.
template <class T>
inline void channels_forward(int tangents, const T* slope, const T* t, T* h, const T* gate, const T* skip,
                             T* out, int64_t size) {
    using S = Simd<T>;
    with_tangents(tangents, [&](auto n) {
        with_gate_and_skip(gate, skip, [&](auto gated, auto skips) {
            constexpr int kTangents = n.value;
            if (kTangents == 0 && !gated.value && !skips.value) return;
            for (int64_t i = 0; i < size; i += S::lanes) {
                const auto at = [&](const T* p, int channel) { return S::load(p + channel * size + i); };
                const auto value = at(h, 0);
                typename S::Vec g{}, result;
                if constexpr (gated.value) g = at(gate, 0);
#pragma GCC unroll 4
                for (int k = 1; k <= kTangents; ++k) {
                    result = at(slope, 0) * at(t, k - 1);
                    if constexpr (gated.value) {
                        S::store(h + k * size + i, result);
                        result = g * result + at(gate, k) * value;
                    }
                    if constexpr (skips.value) result += at(skip, k);
                    S::store(out + k * size + i, result);
                }
                if constexpr (!gated.value && !skips.value) continue;
                result = value;
                if constexpr (gated.value) result = g * value;
                if constexpr (skips.value) result += at(skip, 0);
                S::store(out + i, result);
            }
        });
    });
}

// Backward. From the gradient g of out, in place, to that before the activation,
//   zbar = slope hbar_0 + curvature sum_k t_k hbar_k,   tbar_k = slope hbar_k,   hbar = g without a gate;
// writes the gate's gradient and adds g to the skip's.
template <class T>
inline void channels_backward(int tangents, const T* slope, const T* curvature, const T* t, const T* h,
                              const T* gate, T* grad_gate, T* grad_skip, T* g, int64_t size) {
    using S = Simd<T>;
    with_tangents(tangents, [&](auto n) {
        with_gate_and_skip<T>(gate, grad_skip, [&](auto gated, auto skips) {
            constexpr int kTangents = n.value;
            for (int64_t i = 0; i < size; i += S::lanes) {
                const auto at = [&](const T* p, int channel) { return S::load(p + channel * size + i); };
                typename S::Vec behind[1 + kTangents];
#pragma GCC unroll 4
                for (int k = 0; k <= kTangents; ++k) behind[k] = at(g, k);
                if constexpr (skips.value)
#pragma GCC unroll 4
                    for (int k = 0; k <= kTangents; ++k)
                        S::store(grad_skip + k * size + i, at(grad_skip, k) + behind[k]);
                if constexpr (gated.value) {
                    const auto value = at(h, 0), open = at(gate, 0);
                    auto to_gate = value * behind[0];
                    behind[0] *= open;
#pragma GCC unroll 4
                    for (int k = 1; k <= kTangents; ++k) {
                        to_gate += at(h, k) * behind[k];
                        S::store(grad_gate + k * size + i, value * behind[k]);
                        behind[0] += at(gate, k) * behind[k];
                        behind[k] *= open;
                    }
                    S::store(grad_gate + i, to_gate);
                }
                const auto first = at(slope, 0);
                auto before = first * behind[0];
                if constexpr (kTangents > 0) {
                    typename S::Vec along{};
#pragma GCC unroll 4
                    for (int k = 1; k <= kTangents; ++k) {
                        along += at(t, k - 1) * behind[k];
                        S::store(g + k * size + i, first * behind[k]);
                    }
                    before += at(curvature, 0) * along;
                }
                S::store(g + i, before);
            }
        });
    });
}

}  // namespace nr
