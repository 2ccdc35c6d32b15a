// Grids whose entries are whole vectors of features, as a volume of codes has: the corners of a point's cell
// are vectors, and interpolation is arithmetic between them. Channels as in grid.h.
#pragma once

#include <cstdint>

#include "cpu/grid_cells.h"
#include "cpu/simd.h"
#include "math/multilinear.h"

namespace nr {

template <class T>
constexpr bool whole_vectors(int features) {
    return features % Simd<T>::lanes == 0;
}

// The cell of one point: its entries, and its numbers as vectors.
template <class T, int N>
struct VectorCell {
    using Vec = typename Simd<T>::Vec;
    static constexpr int corners = 1 << N;
    int64_t entry[corners];  // number of the first feature
    Vec upper[N], slope[N], curvature[N];

    VectorCell(const GridCells<T, N>& cells, int features, int p) {
        for (int c = 0; c < corners; ++c) entry[c] = static_cast<int64_t>(cells.index[c][p]) * features;
        for (int d = 0; d < N; ++d) {
            upper[d] = Vec{} + cells.upper[d][p];
            slope[d] = Vec{} + cells.slope[d][p];
            curvature[d] = Vec{} + cells.curvature[d][p];
        }
    }

    void load(const T* entries, int feature, Vec (&e)[corners]) const {
        for (int c = 0; c < corners; ++c) e[c] = Simd<T>::load(entries + entry[c] + feature);
    }
};

template <class T, int N, int C>
inline void gather_vectors(const GridCells<T, N>& cells, int features, int count, const T* entries, T* out,
                           int64_t stride, int64_t channel_stride) {
    using S = Simd<T>;
    using Vec = typename S::Vec;
    for (int p = 0; p < count; ++p) {
        const VectorCell<T, N> cell(cells, features, p);
        for (int f = 0; f < features; f += S::lanes) {
            Vec e[cell.corners], step[N];
            cell.load(entries, f, e);
            T* to = out + p * stride + f;
            S::store(to, Multilinear<Vec, N>::differences(e, cell.upper, step));
            if constexpr (C > 1)
                for (int d = 0; d < N; ++d) S::store(to + (1 + d) * channel_stride, step[d] * cell.slope[d]);
        }
    }
}

// grad: [point][channel][features]
template <class T, int N, int C>
inline void scatter_vectors(const GridCells<T, N>& cells, int features, int first, int last, int count,
                            const T* grad, T* entries) {
    using S = Simd<T>;
    using Vec = typename S::Vec;
    for (int p = 0; p < count; ++p) {
        const VectorCell<T, N> cell(cells, features, p);
        for (int f = first; f < last; f += S::lanes) {
            const T* g = grad + static_cast<int64_t>(p) * C * features + f;
            Vec along[N] = {}, e[cell.corners];
            if constexpr (C > 1)
                for (int d = 0; d < N; ++d) along[d] = S::load(g + (1 + d) * features) * cell.slope[d];
            Multilinear<Vec, N>::adjoint(cell.upper, S::load(g), along, e);
            for (int c = 0; c < cell.corners; ++c) {
                T* entry = entries + cell.entry[c] + f;
                S::store(entry, S::load(entry) + e[c]);
            }
        }
    }
}

template <class T, int N, int C>
inline void gradient_x_vectors(const GridCells<T, N>& cells, int features, int count, const T* entries,
                               const T* grad, int64_t stride, int64_t channel_stride, T* grad_x) {
    using S = Simd<T>;
    using Vec = typename S::Vec;
    for (int p = 0; p < count; ++p) {
        const VectorCell<T, N> cell(cells, features, p);
        Vec sum[N] = {};
        for (int f = 0; f < features; f += S::lanes) {
            Vec e[cell.corners], step[N], mixed[2 * N - 3];
            cell.load(entries, f, e);
            Multilinear<Vec, N>::differences(e, cell.upper, step);
            Multilinear<Vec, N>::mixed(e, cell.upper, mixed);
            const T* g = grad + p * stride + f;
            for (int d = 0; d < N; ++d) {
                sum[d] += S::load(g) * cell.slope[d] * step[d];
                if constexpr (C > 1)
                    for (int k = 0; k < N; ++k)
                        sum[d] += S::load(g + (1 + k) * channel_stride) *
                                  (k == d ? cell.curvature[d] * step[d]
                                          : cell.slope[d] * cell.slope[k] * mixed[d + k - 1]);
            }
        }
        for (int d = 0; d < N; ++d) {
            T total = 0;
            for (int lane = 0; lane < S::lanes; ++lane) total += sum[d][lane];
            grad_x[p * N + d] += total;
        }
    }
}

}  // namespace nr
