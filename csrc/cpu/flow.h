// The flow of a field's velocity on a block of points: explicit Runge-Kutta steps of the position and, in a
// jet, of its derivative to the start, with dX' = J_v dX. The backward keeps the places where the velocity
// was asked, and asks again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/field_block.h"

namespace nr {

struct Tableau {
    int stages;
    double at[4];      // stage i stands at x + h at[i] k_{i-1}
    double weight[4];  // the step is h sum weight[i] k_i
};

constexpr Tableau kEuler{1, {0}, {1}};
constexpr Tableau kRungeKutta{4, {0, 0.5, 0.5, 1}, {1. / 6, 1. / 3, 1. / 3, 1. / 6}};

template <class T>
class FlowBlock {
public:
    std::vector<T> y, jacobian;  // displacement of the flow's end and its derivative

    FlowBlock(const FieldPlan<T>& plan, FieldBlock<T>& field)
        : plan_(plan),
          field_(field),
          tableau_(plan.shape.rk4 ? kRungeKutta : kEuler),
          step_(static_cast<T>(plan.shape.time / plan.shape.steps)),
          ndim_(plan.shape.ndim),
          matrix_(plan.tangents ? ndim_ * ndim_ : 0) {
        y.resize(plan.capacity * ndim_);
        jacobian.resize(plan.capacity * matrix_);
        const size_t state = plan.capacity * (ndim_ + matrix_);
        places_.resize(evaluations() * state);
        rate_.resize(state);
        now_.resize(state);
    }

    int evaluations() const { return plan_.shape.steps * tableau_.stages; }

    void forward(const T* x, int64_t first, int count) {
        const int64_t n = static_cast<int64_t>(count) * ndim_,
                      all = n + static_cast<int64_t>(count) * matrix_;
        std::copy(x, x + n, now_.begin());
        for (int64_t i = n; i < all; ++i) now_[i] = T((i - n) % matrix_ % (ndim_ + 1) == 0);
        for (int e = 0; e < evaluations(); ++e) {
            const int stage = e % tableau_.stages;
            T* place = places_.data() + e * all;
            if (stage == 0) start_ = now_;
            const T along = step_ * static_cast<T>(tableau_.at[stage]);
            for (int64_t i = 0; i < all; ++i) place[i] = start_[i] + (stage ? along * rate_[i] : T(0));
            evaluate(place, first, count);
            const T weight = step_ * static_cast<T>(tableau_.weight[stage]);
            for (int64_t i = 0; i < all; ++i) now_[i] += weight * rate_[i];
        }
        for (int64_t i = 0; i < n; ++i) y[i] = now_[i] - x[i];
        for (int64_t i = n; i < all; ++i) jacobian[i - n] = now_[i] - T((i - n) % matrix_ % (ndim_ + 1) == 0);
    }

    // After forward at the same points. pullback(place, grad_velocity, grad_jacobian, grad_place) runs the
    // field's backward, adding to grad_place; it is called once an evaluation. grad_x is added to, or null.
    template <class Pullback>
    void backward(int64_t first, int count, const T* grad_y, const T* grad_jacobian, T* grad_x,
                  Pullback&& pullback) {
        const int64_t n = static_cast<int64_t>(count) * ndim_,
                      all = n + static_cast<int64_t>(count) * matrix_;
        std::vector<T> end(all), next(all), rate(all), place_gradient(all);
        std::copy(grad_y, grad_y + n, end.begin());
        if (matrix_) std::copy(grad_jacobian, grad_jacobian + all - n, end.begin() + n);
        for (int step = plan_.shape.steps; step-- > 0;) {
            next = end;  // becomes the gradient of the step's start
            for (int stage = tableau_.stages; stage-- > 0;) {
                const T weight = step_ * static_cast<T>(tableau_.weight[stage]);
                const bool last = stage + 1 == tableau_.stages;
                const T along = last ? T(0) : step_ * static_cast<T>(tableau_.at[stage + 1]);
                for (int64_t i = 0; i < all; ++i)
                    rate[i] = weight * end[i] + (last ? T(0) : along * place_gradient[i]);
                const T* place = places_.data() + (step * tableau_.stages + stage) * all;
                evaluate(place, first, count);
                std::fill(place_gradient.begin(), place_gradient.end(), T(0));
                if (matrix_) through_product(place + n, rate.data() + n, place_gradient.data() + n, count);
                pullback(place, rate.data(), velocity_gradient_.data(), place_gradient.data());
                for (int64_t i = 0; i < all; ++i) next[i] += place_gradient[i];
            }
            end = next;
        }
        if (grad_x)
            for (int64_t i = 0; i < n; ++i) grad_x[i] += end[i] - grad_y[i];
    }

private:
    // rate_ = (v(s), J_v(s) dS)
    void evaluate(const T* place, int64_t first, int count) {
        field_.encode(place, first, count);
        field_.forward(place, 0, count);
        const int64_t n = static_cast<int64_t>(count) * ndim_;
        std::copy(field_.y.begin(), field_.y.begin() + n, rate_.begin());
        if (!matrix_) return;
        for (int p = 0; p < count; ++p)
            for (int i = 0; i < ndim_; ++i)
                for (int k = 0; k < ndim_; ++k) {
                    T sum = 0;
                    for (int m = 0; m < ndim_; ++m)
                        sum += field_.jacobian[p * matrix_ + i * ndim_ + m] *
                               place[n + p * matrix_ + m * ndim_ + k];
                    rate_[n + p * matrix_ + i * ndim_ + k] = sum;
                }
    }

    // From the gradient of J_v dS: velocity_gradient_ (of J_v) and, added, that of dS.
    void through_product(const T* tangent, const T* grad, T* grad_tangent, int count) {
        velocity_gradient_.assign(static_cast<size_t>(count) * matrix_, T(0));
        for (int p = 0; p < count; ++p) {
            const T* j = field_.jacobian.data() + p * matrix_;
            const int64_t at = static_cast<int64_t>(p) * matrix_;
            for (int i = 0; i < ndim_; ++i)
                for (int m = 0; m < ndim_; ++m)
                    for (int k = 0; k < ndim_; ++k) {
                        velocity_gradient_[at + i * ndim_ + m] +=
                            grad[at + i * ndim_ + k] * tangent[at + m * ndim_ + k];
                        grad_tangent[at + m * ndim_ + k] += j[i * ndim_ + m] * grad[at + i * ndim_ + k];
                    }
        }
    }

    const FieldPlan<T>& plan_;
    FieldBlock<T>& field_;
    const Tableau& tableau_;
    T step_;
    int ndim_, matrix_;
    std::vector<T> places_, start_, now_, rate_, velocity_gradient_;
};

}  // namespace nr
