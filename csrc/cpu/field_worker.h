// One thread's share of a field at many points, forward and backward, with or without a flow.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/field_block.h"
#include "cpu/field_scatter.h"
#include "cpu/flow.h"

namespace nr {

// The caller's gradients by what they belong to; null where not wanted. grads: of x, then of the tensors.
template <class T>
struct FieldGradients {
    T *x, *b = nullptr, *table = nullptr, *latent = nullptr, *volume = nullptr;
    T* const* layers;
    bool weights = false;

    FieldGradients(const FieldShape& shape, const std::vector<T*>& grads) : x(grads[0]) {
        size_t next = 1;
        if (shape.encoding == Encoding::kFourier) b = grads[next++];
        if (shape.encoding == Encoding::kGrid) table = grads[next++];
        if (shape.latent) latent = grads[next++];
        if (shape.volume_channels) volume = grads[next++];
        layers = grads.data() + next;
        for (; next < grads.size(); ++next) weights |= grads[next] != nullptr;
    }
};

template <class T>
class FieldWorker {
public:
    // gradients: null for the forward alone.
    FieldWorker(const FieldPlan<T>& plan, const FieldGradients<T>* gradients)
        : plan_(plan), gradients_(gradients), field_(plan, gradients != nullptr) {
        if (plan.shape.steps) flow_ = std::make_unique<FlowBlock<T>>(plan, field_);
        if (gradients && gradients->b)
            b_.resize(static_cast<size_t>(plan.shape.ndim) * plan.shape.frequencies);
    }

    // Value [point][out] and Jacobian [point][out][ndim] of the last block.
    const std::vector<T>& y() const { return flow_ ? flow_->y : field_.y; }
    const std::vector<T>& jacobian() const { return flow_ ? flow_->jacobian : field_.jacobian; }

    // Runs body(start, count) behind the forward of every block of the points [begin, end).
    template <class Body>
    void each_block(const T* x, int64_t begin, int64_t end, Body&& body) {
        const int ndim = plan_.shape.ndim;
        for (int64_t group = begin; group < end; group += plan_.encoded_at_once) {
            const int64_t last = std::min(end, group + plan_.encoded_at_once);
            if (!flow_) field_.encode(x + group * ndim, group, last - group);
            for (int64_t start = group; start < last; start += plan_.capacity) {
                const int count = static_cast<int>(std::min<int64_t>(plan_.capacity, last - start));
                if (flow_)
                    flow_->forward(x + start * ndim, start, count);
                else
                    field_.forward(x + start * ndim, start - group, count);
                body(start, count);
            }
        }
    }

    // The forward of one block of at most `capacity` points, the first of them number `first`.
    void forward(const T* x, int64_t first, int count) {
        if (flow_) return flow_->forward(x, first, count);
        field_.encode(x, first, count);
        field_.forward(x, 0, count);
    }

    // The way back of the last block, which lay at x: adds to grad_x (or null), to this thread's sums and,
    // from number `record` on, an encoding gradient an evaluation to the queue.
    void backward(const T* x, int64_t first, int count, const T* grad_y, const T* grad_jacobian, T* grad_x,
                  FieldScatter<T>& scatter, int64_t record) {
        const auto pullback = [&](const T* place, const T* grad_value, const T* grad_j, T* grad_place) {
            field_.backward(place, first, count, grad_value, grad_j, gradients_->weights,
                            first_input(grad_place != nullptr), grad_place, b_.empty() ? nullptr : b_.data(),
                            plan_.shape.shared() ? nullptr : gradients_->latent);
            if (!scatter.empty()) scatter.enqueue(field_, place, count, record);
            record += count;
        };
        if (flow_)
            flow_->backward(first, count, grad_y, grad_jacobian, grad_x, pullback);
        else
            pullback(x, grad_y, grad_jacobian, grad_x);
    }

    // Adds this thread's sums to the caller's: those of the encoding matrix and the layers, and that of a
    // latent which all points share.
    void collect() const {
        for (size_t i = 0; i < b_.size(); ++i) gradients_->b[i] += b_[i];
        if (gradients_->weights) field_.collect(gradients_->layers);
    }
    void collect_latent() const {
        if (gradients_->latent && plan_.shape.shared()) field_.collect_latent(gradients_->latent);
    }

private:
    // Column of the input from which on its gradient is needed.
    int first_input(bool want_place) const {
        if (want_place || gradients_->b || gradients_->table) return 0;
        const bool codes = gradients_->volume || (gradients_->latent && !plan_.shape.shared());
        return codes ? plan_.shape.encoded : plan_.shape.inputs();
    }

    const FieldPlan<T>& plan_;
    const FieldGradients<T>* gradients_;
    FieldBlock<T> field_;
    std::unique_ptr<FlowBlock<T>> flow_;
    std::vector<T> b_;  // the encoding matrix's
};

}  // namespace nr
