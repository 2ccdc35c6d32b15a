// Two convolutions of three taps an axis with a ReLU between them, as csrc/cuda/ops.h has its ops.
#pragma once

#include <array>

#include "cuda/ops.h"

namespace nr {
namespace gpu {

struct ConvShape {
    int64_t batch = 0, in = 0, hidden = 0, out = 0;
    std::vector<int64_t> size;  // 2 or 3 axes
};

// y (batch, out, *size) = w2 * relu(w1 * x + b1) + b2.
template <class T>
void conv_relu_conv_forward(const ConvShape& shape, const T* x, const T* w1, const T* b1, const T* w2,
                            const T* b2, T* y, Where where);

// Bytes of device memory for the sums of the weights' gradients, which need not be cleared.
size_t conv_relu_conv_scratch(const ConvShape& shape, size_t item);

// grads: of w1, b1, w2, b2. Those that are null, as grad_x may be, are not wanted.
template <class T>
void conv_relu_conv_backward(const ConvShape& shape, const T* grad_y, const T* x, const T* w1, const T* b1,
                             const T* w2, T* grad_x, const std::array<T*, 4>& grads, void* scratch,
                             Where where);

}  // namespace gpu
}  // namespace nr
