// Fourier features of a block of points: [sin(scale x B) | cos(scale x B)], B (ndim, frequencies).
#pragma once

#include <cstdint>

#include "math/sincos.h"

namespace nr {

template <class T>
inline void fourier_block(int ndim, int frequencies, T scale, int64_t count, const T* x, const T* b,
                          T* encoded, int64_t stride) {
    for (int64_t p = 0; p < count; ++p) {
        T* sine = encoded + p * stride;
        T* cosine = sine + frequencies;
        for (int f = 0; f < frequencies; ++f) sine[f] = x[p * ndim] * b[f];
        for (int d = 1; d < ndim; ++d)
            for (int f = 0; f < frequencies; ++f) sine[f] += x[p * ndim + d] * b[d * frequencies + f];
        sin_cos_block(sine, scale, sine, cosine, frequencies);
    }
}

// Writes grad_x and adds to grad_b (either may be null) from the features and their gradient.
template <class T>
inline void fourier_block_backward(int ndim, int frequencies, T scale, int64_t count, const T* x, const T* b,
                                   const T* encoded, int64_t stride, const T* grad, int64_t grad_stride,
                                   T* grad_x, T* grad_b) {
    for (int64_t p = 0; p < count; ++p) {
        const T* sine = encoded + p * stride;
        const T* cosine = sine + frequencies;
        const T* g = grad + p * grad_stride;
        for (int d = 0; d < ndim; ++d) {
            const T xd = x[p * ndim + d];
            T sum = 0;
            for (int f = 0; f < frequencies; ++f) {
                const T phase = scale * (cosine[f] * g[f] - sine[f] * g[frequencies + f]);
                sum += phase * b[d * frequencies + f];
                if (grad_b) grad_b[d * frequencies + f] += xd * phase;
            }
            if (grad_x) grad_x[p * ndim + d] = sum;
        }
    }
}

}  // namespace nr
