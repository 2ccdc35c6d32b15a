// The input of a field's first layer on a block of points, [encoding of x | latent a point | latent volume at
// x], and the way back from its gradient. A latent that all points share is no part of it: shared_columns.h.
// Buffers are [channel][point][stride] as in layers.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/fourier.h"
#include "cpu/grid.h"
#include "cpu/ops.h"

namespace nr {

template <int N>
using Constant = std::integral_constant<int, N>;

// Runs body(dimension, features, channels) with compile-time numbers; channels is 1 or 1 + ndim.
template <class Body>
inline void with_grid(int ndim, int features, bool jet, Body&& body) {
    with_features(features, [&](auto f) {
        if (ndim == 3)
            jet ? body(Constant<3>{}, f, Constant<4>{}) : body(Constant<3>{}, f, Constant<1>{});
        else
            jet ? body(Constant<2>{}, f, Constant<3>{}) : body(Constant<2>{}, f, Constant<1>{});
    });
}

template <class T>
struct FieldInput {
    const FieldShape& shape;
    const T* encoding = nullptr;  // table or B
    const T* latent = nullptr;
    const T* volume = nullptr;
    std::vector<GridLevel> levels, volume_levels;

    // Takes the leading tensors; returns how many.
    FieldInput(const FieldShape& shape, const std::vector<const T*>& tensors) : shape(shape) {
        size_t next = 0;
        if (shape.encoding != Encoding::kIdentity) encoding = tensors[next++];
        if (shape.latent) latent = tensors[next++];
        if (shape.volume_channels) {
            volume = tensors[next++];
            volume_levels.push_back(volume_level(shape.volume_size));
        }
        if (shape.encoding == Encoding::kGrid) levels = grid_levels(shape.grid);
    }

    size_t tensors() const { return (encoding != nullptr) + (latent != nullptr) + (volume != nullptr); }

    FourierBlock<T> fourier() const {
        return {shape.ndim, shape.frequencies, static_cast<T>(shape.fourier_scale), encoding};
    }

    // Encodes blocks of `capacity` points (the last may have fewer) one behind the other; first: number of
    // the first point, for a latent a point. Grids go level by level over all blocks, so that a level stays
    // in the cache.
    void encode(const T* x, int64_t first, int64_t points, int capacity, int tangents, T* out,
                int64_t stride) const {
        const int ndim = shape.ndim;
        const auto blocks = [&](auto&& body) {
            for (int64_t start = 0; start < points; start += capacity)
                body(start, static_cast<int>(std::min<int64_t>(capacity, points - start)),
                     out + start * (1 + tangents) * stride);
        };
        blocks([&](int64_t start, int count, T* to) {
            const int64_t channel = count * stride;
            if (shape.encoding == Encoding::kIdentity || shape.raw)
                for (int k = 0; k <= tangents; ++k)
                    for (int p = 0; p < count; ++p)
                        for (int d = 0; d < ndim; ++d)
                            to[k * channel + p * stride + d] = k ? T(d == k - 1) : x[(start + p) * ndim + d];
            if (shape.encoding == Encoding::kFourier)
                fourier().encode(1 + tangents, count, x + start * ndim, to + (shape.raw ? ndim : 0), stride,
                                 channel);
            if (!shape.latent_per_point) return;
            for (int k = 0; k <= tangents; ++k)
                for (int p = 0; p < count; ++p) {
                    const T* row = latent + (first + start + p) * shape.latent;
                    T* at = to + k * channel + p * stride + shape.encoded;
                    for (int i = 0; i < shape.latent; ++i) at[i] = k ? T(0) : row[i];
                }
        });
        const auto gather = [&](const GridLevel& level, int features, const T* table, int64_t column) {
            with_grid(ndim, features, tangents > 0, [&](auto n, auto f, auto c) {
                blocks([&](int64_t start, int count, T* to) {
                    grid_gather<T, n.value, f.value, c.value>(level, features, x + start * ndim, count, table,
                                                              to + column, stride, count * stride);
                });
            });
        };
        for (size_t l = 0; l < levels.size(); ++l)
            gather(levels[l], shape.grid.features, encoding, static_cast<int64_t>(l) * shape.grid.features);
        if (volume) gather(volume_levels[0], shape.volume_channels, volume, shape.volume_column());
    }

    // Adds to grad_x, grad_b and a latent a point's grad_latent (each may be null; B's is this thread's) from
    // the input and its gradient g. Tables and volumes are not handled here but scattered by their owners.
    void backward(const T* x, int64_t first, int count, int tangents, const T* in, const T* g, int64_t stride,
                  T* grad_x, T* grad_b, T* grad_latent) const {
        const int ndim = shape.ndim;
        const int64_t channel = count * stride;
        if (grad_x && (shape.encoding == Encoding::kIdentity || shape.raw))
            for (int p = 0; p < count; ++p)
                for (int d = 0; d < ndim; ++d) grad_x[p * ndim + d] += g[p * stride + d];
        if (shape.encoding == Encoding::kFourier && (grad_x || grad_b)) {
            const int64_t at = shape.raw ? ndim : 0;
            fourier().backward(1 + tangents, count, x, in + at, g + at, stride, channel, grad_x, grad_b);
        }
        if (shape.encoding == Encoding::kGrid && grad_x)
            gradient_x(levels, shape.grid.features, encoding, x, count, tangents, g, stride, grad_x);
        if (grad_latent)
            for (int p = 0; p < count; ++p) {
                T* row = grad_latent + (first + p) * shape.latent;
                const T* from = g + p * stride + shape.encoded;
                for (int i = 0; i < shape.latent; ++i) row[i] += from[i];
            }
        if (volume && grad_x)
            gradient_x(volume_levels, shape.volume_channels, volume, x, count, tangents,
                       g + shape.volume_column(), stride, grad_x);
    }

private:
    void gradient_x(const std::vector<GridLevel>& grid, int features, const T* table, const T* x, int count,
                    int tangents, const T* g, int64_t stride, T* grad_x) const {
        with_grid(shape.ndim, features, tangents > 0, [&](auto n, auto f, auto c) {
            for (size_t l = 0; l < grid.size(); ++l)
                grid_gradient_x<T, n.value, f.value, c.value>(
                    grid[l], features, x, count, table, g + l * features, stride, count * stride, grad_x);
        });
    }
};

}  // namespace nr
