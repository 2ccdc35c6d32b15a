// A field on a block of points, on one thread: its value (and Jacobian), and the pullback of their gradients.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/field_input.h"
#include "cpu/layers.h"

namespace nr {

// Numbers of encoded input that a thread holds at once, and of a table that needs it.
constexpr int64_t kEncoded = 1 << 20;

// What all threads share in one call.
template <class T>
struct FieldPlan {
    const FieldShape& shape;
    FieldInput<T> input;
    StackPlan<T> main;
    std::optional<StackPlan<T>> gates;
    int tangents;
    int capacity;             // points a block
    int64_t encoded_at_once;  // points
    T* kept;                  // all encoded points, filled by a forward and read by a backward; or null

    FieldPlan(const FieldShape& shape, const std::vector<const T*>& tensors, bool jet, bool training, T* kept)
        : shape(shape),
          input(shape, tensors),
          main(shape.widths, tensors.data() + input.tensors(),
               shape.gate_widths.empty() ? shared(tensors[input.tensors()]) : SharedColumns<T>{},
               shape.omegas, shape.activation, shape.gate_widths.empty() ? shape.skip : Skip::kNone, true,
               shape.bfloat16, training),
          tangents(jet ? shape.ndim : 0),
          kept(kept) {
        if (!shape.gate_widths.empty()) {
            const T* const* params = tensors.data() + input.tensors() + 2 * main.layers.size();
            gates.emplace(shape.gate_widths, params, shared(params[0]), shape.gate_omegas, shape.activation,
                          shape.skip, false, shape.bfloat16, training);
        }
        // The activations of a block and one layer's weights share the second cache.
        const int widest = *std::max_element(shape.widths.begin(), shape.widths.end());
        capacity = (widest > 128 ? kGridBlock / 2 : kGridBlock) / (jet ? 2 : 1);
        // A grid goes level by level over many blocks, so that a level's entries are fetched less often: over
        // as many as fit where the table outgrows the second cache, over a few where it does not. A flow asks
        // block by block.
        encoded_at_once = capacity;
        if (shape.encoding == Encoding::kGrid && !shape.steps) {
            const GridLevel& last = input.levels.back();
            const int64_t row = (1 + tangents) * row_stride<T>(shape.inputs());
            encoded_at_once *= (last.offset + last.entries) * shape.grid.features > kEncoded
                                   ? std::max<int64_t>(1, kEncoded / (row * capacity))
                                   : 16;
        }
    }

    // Columns that are the same at all points, of a first layer with these weights.
    SharedColumns<T> shared(const T* weights) const {
        return {shape.encoded, shape.shared(), input.latent, weights};
    }
};

template <class T>
class FieldBlock {
public:
    // Value [point][out] and Jacobian [point][out][ndim] of the last forward.
    std::vector<T> y, jacobian;

    FieldBlock(const FieldPlan<T>& plan, bool training)
        : plan_(plan),
          stride_(row_stride<T>(plan.shape.inputs())),
          training_(training),
          main_(plan.main, plan.tangents, plan.capacity, training, plan.gates.has_value()) {
        if (!plan.kept) input_.resize((1 + plan.tangents) * plan.encoded_at_once * stride_);
        if (training) input_gradient_.resize((1 + plan.tangents) * plan.capacity * stride_);
        if (plan.gates) gates_.emplace(*plan.gates, plan.tangents, plan.capacity, training, false);
        y.resize(plan.capacity * plan.shape.out);
        jacobian.resize(y.size() * plan.tangents);
    }

    // Takes up to encoded_at_once points, which forward then runs through a block at a time; first: number of
    // the first, a multiple of capacity.
    void encode(const T* x, int64_t first, int64_t points) {
        encoded_ = plan_.kept ? plan_.kept + first * (1 + plan_.tangents) * stride_ : input_.data();
        if (plan_.kept && training_) return;  // the forward has been here
        plan_.input.encode(x, first, points, plan_.capacity, plan_.tangents, encoded_, stride_);
    }

    // The `count` points from number `start` of those encoded, at x.
    void forward(const T* x, int64_t start, int count) {
        const FieldShape& shape = plan_.shape;
        block_ = encoded_ + start * (1 + plan_.tangents) * stride_;
        if (gates_) gates_->forward(block_, stride_, count, nullptr);
        main_.forward(block_, stride_, count, gates());
        const int64_t stride = row_stride<T>(shape.out), channel = count * stride;
        const int n = plan_.tangents;
        for (int p = 0; p < count; ++p)
            for (int o = 0; o < shape.out; ++o) {
                const T* z = main_.output() + p * stride + o;
                T& value = y[p * shape.out + o];
                T* row = jacobian.data() + (p * shape.out + o) * n;
                T slope = 1;
                value = z[0];
                if (shape.output == Output::kVelocity) {
                    const Activated<T> bounded = hyperbolic_tangent(z[0]);
                    value = bounded.value;
                    slope = bounded.slope;
                } else if (shape.output == Output::kPosition) {
                    value -= x[p * shape.ndim + o];
                }
                for (int k = 0; k < n; ++k)
                    row[k] = slope * z[(k + 1) * channel] - T(shape.output == Output::kPosition && k == o);
            }
    }

    // After forward at the same points. Adds to the weights' gradients where wanted, and to grad_x, grad_b,
    // grad_latent where these are not null. Of input_gradient(), the columns from number `from` on are
    // filled; grad_x and grad_b need them all.
    void backward(const T* x, int64_t first, int count, const T* grad_y, const T* grad_jacobian,
                  bool want_weights, int from, T* grad_x, T* grad_b, T* grad_latent) {
        load_gradient(x, count, grad_y, grad_jacobian, grad_x);
        const int read = plan_.main.layers[0].in;  // the gates read these columns, and further ones
        T* to = input_gradient_.data();
        main_.backward(block_, stride_, count, gates(), want_weights, to, from, false);
        if (gates_) {
            const int64_t rows = int64_t{count} * (1 + plan_.tangents), written = padded<T>(read);
            if (from < read)
                for (int64_t r = 0; r < rows; ++r)
                    std::fill(to + r * stride_ + written, to + (r + 1) * stride_, T(0));
            gates_->backward(block_, stride_, count, nullptr, want_weights, to, from, from < read);
        }
        if (from < plan_.shape.inputs())
            plan_.input.backward(x, first, count, plan_.tangents, block_, to, stride_, grad_x, grad_b,
                                 grad_latent);
    }

    // [channel][point][input_stride()]
    const T* input_gradient() const { return input_gradient_.data(); }
    int64_t input_stride() const { return stride_; }

    void collect(T* const* gradients) const {
        main_.collect(gradients);
        if (gates_) gates_->collect(gradients + 2 * plan_.main.layers.size());
    }

    // The gradient of a latent that all points share.
    void collect_latent(T* gradient) const { (gates_ ? *gates_ : main_).collect_shared(gradient); }

private:
    Stack<T>* gates() { return gates_ ? &*gates_ : nullptr; }

    // The gradient of the last layer's z from that of the output.
    void load_gradient(const T* x, int count, const T* grad_y, const T* grad_jacobian, T* grad_x) {
        const FieldShape& shape = plan_.shape;
        const int64_t stride = row_stride<T>(shape.out), channel = count * stride;
        const int n = plan_.tangents;
        for (int p = 0; p < count; ++p)
            for (int o = 0; o < shape.out; ++o) {
                const T* z = main_.output() + p * stride + o;
                T* g = main_.output_gradient() + p * stride + o;
                const T* row = grad_jacobian + (p * shape.out + o) * n;
                g[0] = grad_y[p * shape.out + o];
                for (int k = 0; k < n; ++k) g[(k + 1) * channel] = row[k];
                if (shape.output == Output::kVelocity) {
                    const Activated<T> bounded = hyperbolic_tangent(z[0]);
                    g[0] *= bounded.slope;
                    for (int k = 0; k < n; ++k) {
                        g[0] += bounded.curvature * z[(k + 1) * channel] * row[k];
                        g[(k + 1) * channel] = bounded.slope * row[k];
                    }
                } else if (shape.output == Output::kPosition && grad_x) {
                    grad_x[p * shape.ndim + o] -= grad_y[p * shape.out + o];
                }
            }
    }

    const FieldPlan<T>& plan_;
    int64_t stride_;
    bool training_;
    Stack<T> main_;
    std::optional<Stack<T>> gates_;
    AlignedVector<T> input_, input_gradient_;
    T* encoded_ = nullptr;      // the points that encode took
    const T* block_ = nullptr;  // those that forward took of them
};

}  // namespace nr
