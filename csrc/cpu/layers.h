// The layers of a field on a block of points: packed weights, activations, forward and backward.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/ops.h"
#include "math/sincos.h"

namespace nr {

constexpr int kFieldBlock = 96;  // points a block: a multiple of kTileRows, activations of a block stay in L2

// Weights of all layers, padded to whole vectors, in both orders that the products need.
template <class T>
struct PackedLayers {
    struct Layer {
        int in, out;
        int64_t in_padded, out_padded;
        std::vector<T> by_input;   // [in][out_padded]: forward
        std::vector<T> by_output;  // [out][in_padded]: input gradient
        std::vector<T> bias;       // [out_padded]
    };
    std::vector<Layer> layers;

    // params: W, b layer by layer
    PackedLayers(const std::vector<int>& widths, const T* const* params) {
        for (size_t l = 0; l + 1 < widths.size(); ++l) {
            Layer layer;
            layer.in = widths[l];
            layer.out = widths[l + 1];
            layer.in_padded = padded<T>(layer.in);
            layer.out_padded = padded<T>(layer.out);
            layer.by_input.assign(layer.in * layer.out_padded, T(0));
            layer.by_output.assign(layer.out * layer.in_padded, T(0));
            layer.bias.assign(layer.out_padded, T(0));
            const T* w = params[2 * l];
            const T* b = params[2 * l + 1];
            for (int o = 0; o < layer.out; ++o) {
                layer.bias[o] = b[o];
                for (int i = 0; i < layer.in; ++i) {
                    layer.by_input[i * layer.out_padded + o] = w[o * layer.in + i];
                    layer.by_output[o * layer.in_padded + i] = w[o * layer.in + i];
                }
            }
            layers.push_back(std::move(layer));
        }
    }
};

// One thread's buffers. value[l] holds the input of layer l, value.back() the field's output; slope[l] the
// activation's derivative behind value[l] (sine); all [kFieldBlock][padded width].
template <class T>
class LayerBlock {
public:
    LayerBlock(const FieldShape& shape, const PackedLayers<T>& packed, bool training)
        : shape_(shape), packed_(packed), training_(training) {
        const bool sine = shape.activation == 1;
        for (size_t l = 0; l < shape.widths.size(); ++l) {
            const size_t size = kFieldBlock * padded<T>(shape.widths[l]);
            value_.emplace_back(size, T(0));
            const bool hidden = l > 0 && l + 1 < shape.widths.size();
            slope_.emplace_back(sine && hidden ? size : 0, T(0));
            if (training) gradient_.emplace_back(size, T(0));
        }
        if (training)
            for (const auto& layer : packed.layers) {
                weight_gradient_.emplace_back(layer.out * layer.in_padded, T(0));
                bias_gradient_.emplace_back(layer.out_padded, T(0));
            }
    }

    T* input() { return value_.front().data(); }
    int64_t input_stride() const { return padded<T>(shape_.widths.front()); }
    const T* output() const { return value_.back().data(); }
    T* output_gradient() { return gradient_.back().data(); }
    const T* input_gradient() const { return gradient_.front().data(); }
    int64_t output_stride() const { return padded<T>(shape_.widths.back()); }

    void forward(int count) {
        for (size_t l = 0; l < packed_.layers.size(); ++l) {
            const auto& layer = packed_.layers[l];
            T* z = value_[l + 1].data();
            for (int p = 0; p < count; ++p)
                std::memcpy(z + p * layer.out_padded, layer.bias.data(), layer.out_padded * sizeof(T));
            gemm(count, static_cast<int>(layer.out_padded), layer.in, value_[l].data(), layer.in_padded, 1,
                 layer.by_input.data(), layer.out_padded, z, layer.out_padded);
            if (l + 1 < packed_.layers.size()) activate(l, static_cast<int>(count * layer.out_padded));
        }
    }

    // After forward, with output_gradient() filled: adds to the weight gradients, leaves input_gradient()
    // when wanted.
    void backward(int count, bool want_weights, bool want_input) {
        for (size_t l = packed_.layers.size(); l-- > 0;) {
            const auto& layer = packed_.layers[l];
            const T* dz = gradient_[l + 1].data();
            if (want_weights) {
                gemm(layer.out, static_cast<int>(layer.in_padded), count, dz, 1, layer.out_padded,
                     value_[l].data(), layer.in_padded, weight_gradient_[l].data(), layer.in_padded);
                T* db = bias_gradient_[l].data();
                for (int p = 0; p < count; ++p)
                    for (int64_t o = 0; o < layer.out_padded; ++o) db[o] += dz[p * layer.out_padded + o];
            }
            if (l == 0 && !want_input) return;
            T* dv = gradient_[l].data();
            std::memset(dv, 0, count * layer.in_padded * sizeof(T));
            gemm(count, static_cast<int>(layer.in_padded), layer.out, dz, layer.out_padded, 1,
                 layer.by_output.data(), layer.in_padded, dv, layer.in_padded);
            if (l > 0) activation_gradient(l, static_cast<int>(count * layer.in_padded));
        }
    }

    // Adds this block's weight and bias gradients to the caller's (a null pointer: not wanted).
    void collect(T* const* gradients) const {
        for (size_t l = 0; l < packed_.layers.size(); ++l) {
            const auto& layer = packed_.layers[l];
            if (T* w = gradients[2 * l])
                for (int o = 0; o < layer.out; ++o)
                    for (int i = 0; i < layer.in; ++i)
                        w[o * layer.in + i] += weight_gradient_[l][o * layer.in_padded + i];
            if (T* b = gradients[2 * l + 1])
                for (int o = 0; o < layer.out; ++o) b[o] += bias_gradient_[l][o];
        }
    }

private:
    void activate(size_t l, int size) {
        T* v = value_[l + 1].data();
        if (shape_.activation == 0) {
            for (int i = 0; i < size; ++i) v[i] = v[i] < 0 ? T(0) : v[i];  // NaN passes
            return;
        }
        const T omega = static_cast<T>(shape_.omegas[l]);
        T* s = slope_[l + 1].data();
        sin_cos_block(v, omega, v, s, size);
        if (training_)
            for (int i = 0; i < size; ++i) s[i] *= omega;
    }

    void activation_gradient(size_t l, int size) {
        T* g = gradient_[l].data();
        if (shape_.activation == 0) {
            const T* v = value_[l].data();
            for (int i = 0; i < size; ++i) g[i] = v[i] > 0 ? g[i] : T(0);
        } else {
            const T* s = slope_[l].data();
            for (int i = 0; i < size; ++i) g[i] *= s[i];
        }
    }

    const FieldShape& shape_;
    const PackedLayers<T>& packed_;
    bool training_;
    std::vector<std::vector<T>> value_, slope_, gradient_, weight_gradient_, bias_gradient_;
};

}  // namespace nr
