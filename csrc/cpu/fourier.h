// Fourier features of a block of points: [sin(scale x B) | cos(scale x B)], B (ndim, frequencies), and their
// derivatives to the coordinates in further channels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "math/sincos.h"

namespace nr {

template <class T>
struct FourierBlock {
    int ndim, frequencies;
    T scale;
    const T* b;

    // out[channel * channel_stride + p * stride + feature]; channels: 1 or 1 + ndim
    void encode(int channels, int64_t count, const T* x, T* out, int64_t stride,
                int64_t channel_stride) const {
        for (int64_t p = 0; p < count; ++p) {
            T* s = out + p * stride;
            T* c = s + frequencies;
            for (int f = 0; f < frequencies; ++f) s[f] = x[p * ndim] * b[f];
            for (int d = 1; d < ndim; ++d)
                for (int f = 0; f < frequencies; ++f) s[f] += x[p * ndim + d] * b[d * frequencies + f];
            sin_cos_block(s, scale, s, c, frequencies);
            for (int k = 1; k < channels; ++k) {
                T* ds = s + k * channel_stride;
                T* dc = ds + frequencies;
                const T* row = b + (k - 1) * frequencies;
                for (int f = 0; f < frequencies; ++f) {
                    ds[f] = scale * row[f] * c[f];
                    dc[f] = -scale * row[f] * s[f];
                }
            }
        }
    }

    // Adds to grad_x and grad_b (either may be null) from the features and their gradient, both laid out as
    // above.
    void backward(int channels, int64_t count, const T* x, const T* features, const T* grad, int64_t stride,
                  int64_t channel_stride, T* grad_x, T* grad_b) const {
        constexpr int kChunk = 64;
        T phase[kChunk];  // gradient of the argument of sine and cosine
        for (int64_t p = 0; p < count; ++p)
            for (int first = 0; first < frequencies; first += kChunk) {
                const int size = std::min(kChunk, frequencies - first);
                const T* s = features + p * stride + first;
                const T* c = s + frequencies;
                const T* g = grad + p * stride + first;
                for (int f = 0; f < size; ++f) phase[f] = c[f] * g[f] - s[f] * g[frequencies + f];
                for (int k = 1; k < channels; ++k) {
                    const T* gk = g + k * channel_stride;
                    const T* row = b + (k - 1) * frequencies + first;
                    for (int f = 0; f < size; ++f)
                        phase[f] -= scale * row[f] * (s[f] * gk[f] + c[f] * gk[frequencies + f]);
                }
                for (int d = 0; d < ndim; ++d) {
                    const T* row = b + d * frequencies + first;
                    if (grad_x) {
                        T sum = 0;
                        for (int f = 0; f < size; ++f) sum += phase[f] * row[f];
                        grad_x[p * ndim + d] += scale * sum;
                    }
                    if (!grad_b) continue;
                    T* to = grad_b + d * frequencies + first;
                    const T xd = x[p * ndim + d];
                    for (int f = 0; f < size; ++f) to[f] += scale * xd * phase[f];
                    if (channels == 1) continue;
                    const T* gd = g + (1 + d) * channel_stride;
                    for (int f = 0; f < size; ++f)
                        to[f] += scale * (c[f] * gd[f] - s[f] * gd[frequencies + f]);
                }
            }
    }
};

}  // namespace nr
