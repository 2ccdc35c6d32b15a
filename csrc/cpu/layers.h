// A stack of layers on a block of points: activations, forward and backward.
//
// Every buffer is [channel][point][row_stride(width)], where channel 0 is the value and channel 1 + k, in a
// jet, the derivative to coordinate k. The channels of a block follow each other without a gap, so that a
// layer is one product over channels x points rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/activate.h"
#include "cpu/aligned.h"
#include "cpu/channels.h"
#include "cpu/layer_products.h"
#include "cpu/ops.h"
#include "cpu/shared_columns.h"

namespace nr {

// What a stack is made of, for all threads.
template <class T>
struct StackPlan {
    std::vector<PackedLayer<T>> layers;
    SharedColumns<T> shared;  // of the first layer
    std::vector<T> omegas;    // one a hidden layer
    Activation activation;
    Skip skip;
    bool linear_end;  // the last layer has no activation

    // params: W, b layer by layer
    StackPlan(const std::vector<int>& widths, const T* const* params, const SharedColumns<T>& shared,
              const std::vector<double>& omega, Activation activation, Skip skip, bool linear_end,
              bool bfloat16, bool training)
        : shared(shared),
          omegas(widths.size(), T(1)),
          activation(activation),
          skip(skip),
          linear_end(linear_end) {
        for (size_t l = 0; l + 1 < widths.size(); ++l) {
            const int in = widths[l], out = widths[l + 1];
            const T *w = params[2 * l], *b = params[2 * l + 1];
            const bool rounded = rounds<T>(in, out, bfloat16);
            if (l == 0 && shared.count) {
                const FoldedLayer<T> folded(shared, in, out, w, b, rounded);
                layers.emplace_back(in - shared.count, out, folded.weights.data(), folded.bias.data(),
                                    rounded, training);
            } else {
                layers.emplace_back(in, out, w, b, rounded, training);
            }
        }
        for (size_t l = 0; l < omega.size(); ++l) omegas[l] = static_cast<T>(omega[l]);
    }

    int size() const { return static_cast<int>(layers.size()); }
    bool hidden(int l) const { return !linear_end || l + 1 < size(); }
    // Layer whose output is added to that of layer l; -1 for none.
    int source(int l) const {
        if (skip == Skip::kNone || l == 0 || !hidden(l)) return -1;
        return skip == Skip::kFirst ? 0 : l - 1;
    }
};

// One thread's buffers of a stack.
template <class T>
class Stack {
public:
    Stack(const StackPlan<T>& plan, int tangents, int capacity, bool training, bool gated)
        : plan_(plan),
          tangents_(tangents),
          products_(plan.layers, int64_t{capacity} * (1 + tangents), training),
          layers_(plan.size()) {
        for (int l = 0; l < plan.size(); ++l) {
            const PackedLayer<T>& packed = plan.layers[l];
            Buffers& b = layers_[l];
            const size_t channel = capacity * row_stride<T>(packed.out), all = channel * (1 + tangents);
            b.before.resize(all);
            if (plan.hidden(l)) {
                b.value.resize(all);
                b.slope.resize(channel);
                if (training && tangents) b.curvature.resize(channel);
                if (gated) b.ungated.resize(all);
            }
            if (training) {
                b.gradient.resize(all);
                b.weight_gradient.resize(packed.out * row_stride<T>(packed.in));
                b.bias_gradient.resize(row_stride<T>(packed.out));
            }
        }
    }

    const T* output() const {
        return plan_.linear_end ? layers_.back().before.data() : layers_.back().value.data();
    }
    const T* value(int l) const { return layers_[l].value.data(); }
    T* gradient(int l) { return layers_[l].gradient.data(); }
    T* output_gradient() { return layers_.back().gradient.data(); }

    // input [channel][point][input_stride]; gates: the stack whose layer l multiplies layer l, or null.
    void forward(const T* input, int64_t input_stride, int count, const Stack* gates) {
        for (int l = 0; l < plan_.size(); ++l) {
            const PackedLayer<T>& packed = plan_.layers[l];
            Buffers& b = layers_[l];
            const int64_t stride = row_stride<T>(packed.out), size = count * stride;
            products_.forward(packed, input, input_stride, count, (1 + tangents_) * count, b.before.data());
            if (!plan_.hidden(l)) return;
            T* behind = gates ? b.ungated.data() : b.value.data();
            activate_block(plan_.activation, plan_.omegas[l], b.before.data(), behind, b.slope.data(),
                           b.curvature.empty() ? nullptr : b.curvature.data(), size);
            const int source = plan_.source(l);
            channels_forward(tangents_, b.slope.data(), b.before.data() + size, behind,
                             gates ? gates->value(l) : nullptr,
                             source >= 0 ? layers_[source].value.data() : nullptr, b.value.data(), size);
            input = b.value.data();
            input_stride = stride;
        }
    }

    // After forward with the same input, with the gradients of the outputs in place: output_gradient(), and
    // gradient(l) of every layer when this stack is gates. Adds to the weights' gradients; writes, or adds
    // to, the input's gradient from column `from` on; writes the gradients of the gates.
    void backward(const T* input, int64_t input_stride, int count, Stack* gates, bool want_weights,
                  T* input_gradient, int from, bool add_to_input) {
        if (plan_.skip != Skip::kNone && plan_.linear_end)
            for (int l = 0; l + 1 < plan_.size(); ++l)
                std::fill(layers_[l].gradient.begin(), layers_[l].gradient.end(), T(0));
        for (int l = plan_.size(); l-- > 0;) {
            const PackedLayer<T>& packed = plan_.layers[l];
            Buffers& b = layers_[l];
            const int64_t stride = row_stride<T>(packed.out), size = count * stride;
            T* g = b.gradient.data();
            if (plan_.hidden(l)) {
                const int source = plan_.source(l);
                channels_backward(tangents_, b.slope.data(), b.curvature.data(), b.before.data() + size,
                                  b.ungated.data(), gates ? gates->value(l) : nullptr,
                                  gates ? gates->gradient(l) : nullptr,
                                  source >= 0 ? layers_[source].gradient.data() : nullptr, g, size);
            }
            const T* in = l ? layers_[l - 1].value.data() : input;
            const int64_t in_stride = l ? row_stride<T>(packed.in) : input_stride;
            const int rows = (1 + tangents_) * count;
            if (want_weights)
                products_.weight_gradient(packed, g, in, in_stride, rows, b.weight_gradient.data());
            if (want_weights || (l == 0 && plan_.shared.count))
                for (int p = 0; p < count; ++p)
                    for (int64_t o = 0; o < stride; ++o) b.bias_gradient[o] += g[p * stride + o];
            if (l == 0 && from >= packed.in) return;
            T* to = l ? layers_[l - 1].gradient.data() : input_gradient;
            // gradients of earlier layers already hold what came through gates and skips
            const bool adds = l ? plan_.skip != Skip::kNone || !plan_.linear_end : add_to_input;
            products_.input_gradient(packed, g, rows, adds, to, in_stride, l ? 0 : from);
        }
    }

    // Adds the weights' gradients to the caller's (a null pointer: not wanted), which are ordered as the
    // parameters.
    void collect(T* const* gradients) const {
        for (int l = 0; l < plan_.size(); ++l) {
            const PackedLayer<T>& packed = plan_.layers[l];
            const Buffers& b = layers_[l];
            const SharedColumns<T> shared = l ? SharedColumns<T>{} : plan_.shared;
            const int in = packed.in + shared.count;
            if (T* w = gradients[2 * l])
                for (int o = 0; o < packed.out; ++o)
                    shared.add_row(b.weight_gradient.data() + o * row_stride<T>(packed.in),
                                   b.bias_gradient[o], in, w + static_cast<int64_t>(o) * in);
            if (T* bias = gradients[2 * l + 1])
                for (int o = 0; o < packed.out; ++o) bias[o] += b.bias_gradient[o];
        }
    }

    // Adds the gradient of the values of the shared columns.
    void collect_shared(T* gradient) const {
        if (!plan_.shared.count) return;
        const PackedLayer<T>& packed = plan_.layers[0];
        plan_.shared.add_gradient(packed.in + plan_.shared.count, packed.out, layers_[0].bias_gradient.data(),
                                  gradient);
    }

private:
    struct Buffers {
        AlignedVector<T> before;  // of the activation
        AlignedVector<T> value, slope, curvature, ungated, gradient, weight_gradient, bias_gradient;
    };

    const StackPlan<T>& plan_;
    int tangents_;
    LayerProducts<T> products_;
    std::vector<Buffers> layers_;
};

}  // namespace nr
