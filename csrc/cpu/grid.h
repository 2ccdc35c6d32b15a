// Blocks of points in a multi-resolution grid: cells and weights are computed for a block at once
// (vectorised), the corners are then gathered or scattered point by point. Shared by hash_encode and field.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "math/hashgrid.h"

namespace nr {

constexpr int kGridBlock = 96;

struct GridLevel {
    int resolution;
    bool hashed;
    int64_t offset;  // first entry of the level in the table
};

inline std::vector<GridLevel> grid_levels(const GridShape& grid) {
    std::vector<GridLevel> levels;
    int64_t offset = 0;
    for (int resolution : grid.resolutions) {
        int64_t vertices = 1;
        for (int d = 0; d < grid.ndim && vertices <= grid.table_size; ++d) vertices *= resolution;
        const bool hashed = vertices > grid.table_size;
        levels.push_back({resolution, hashed, offset});
        offset += hashed ? grid.table_size : vertices;
    }
    return levels;
}

// Where the points of a block lie in one level.
template <class T, int N>
struct GridCells {
    static constexpr int corners = 1 << N;
    T fraction[N][kGridBlock];
    uint32_t index[corners][kGridBlock];
    T weight[corners][kGridBlock];

    // unit: [N][kGridBlock] coordinates in [0, 1]
    void locate(const GridLevel& level, int64_t table_size, const T (*unit)[kGridBlock], int count) {
        int32_t cell[N][kGridBlock];
        const int32_t vertices = level.resolution;
        for (int d = 0; d < N; ++d)
            for (int p = 0; p < count; ++p) cell[d][p] = grid_cell(unit[d][p], vertices, fraction[d][p]);
        const uint32_t mask = static_cast<uint32_t>(table_size - 1);
        for (int c = 0; c < corners; ++c) {
            // bit N - 1 - d of a corner's number is its step along axis d
            for (int p = 0; p < count; ++p) {
                T w = 1;
                for (int d = 0; d < N; ++d) w *= (c >> (N - 1 - d)) & 1 ? fraction[d][p] : 1 - fraction[d][p];
                weight[c][p] = w;
            }
            if constexpr (N == 3) {
                const int a = c >> 2, b = (c >> 1) & 1, e = c & 1;
                if (level.hashed)
                    for (int p = 0; p < count; ++p)
                        index[c][p] = hashed_index(cell[0][p] + a, cell[1][p] + b, cell[2][p] + e, mask);
                else
                    for (int p = 0; p < count; ++p)
                        index[c][p] = dense_index(cell[0][p] + a, cell[1][p] + b, cell[2][p] + e, vertices);
            } else {
                const int a = c >> 1, b = c & 1;
                if (level.hashed)
                    for (int p = 0; p < count; ++p)
                        index[c][p] = hashed_index(cell[0][p] + a, cell[1][p] + b, mask);
                else
                    for (int p = 0; p < count; ++p)
                        index[c][p] = dense_index(cell[0][p] + a, cell[1][p] + b, vertices);
            }
        }
    }

    // d weight[c] / d unit coordinate d, up to the factor (vertices - 1)
    T weight_slope(int c, int d, int p) const {
        T w = (c >> (N - 1 - d)) & 1 ? T(1) : T(-1);
        for (int o = 0; o < N; ++o)
            if (o != d) w *= (c >> (N - 1 - o)) & 1 ? fraction[o][p] : 1 - fraction[o][p];
        return w;
    }
};

template <class T, int N>
inline void load_unit(const T* x, int count, T (*unit)[kGridBlock]) {
    for (int p = 0; p < count; ++p)
        for (int d = 0; d < N; ++d) unit[d][p] = unit_coordinate(x[p * N + d]);
}

// F features an entry at compile time where it is a usual number; 0 reads it at run time.
template <int F>
struct FeatureCount {
    static constexpr int value = F;
};

// One entry as a short vector, so that a corner costs one load and one multiply-add.
template <class T, int F>
struct Entry {
    typedef T Vec __attribute__((vector_size(F * sizeof(T))));
};

template <class V, class T>
inline V load_entry(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}

template <class Body>
inline void with_features(int features, Body&& body) {
    switch (features) {
        case 1: body(FeatureCount<1>{}); break;
        case 2: body(FeatureCount<2>{}); break;
        case 4: body(FeatureCount<4>{}); break;
        case 8: body(FeatureCount<8>{}); break;
        default: body(FeatureCount<0>{}); break;
    }
}

// encoded[p * stride + level * features + f] for up to kGridBlock points
template <class T, int N, int F>
inline void grid_gather(const GridShape& grid, const std::vector<GridLevel>& levels, const T* x, int count,
                        const T* table, T* encoded, int64_t stride) {
    const int features = F ? F : grid.features;
    T unit[N][kGridBlock];
    load_unit<T, N>(x, count, unit);
    GridCells<T, N> cells;
    for (size_t l = 0; l < levels.size(); ++l) {
        cells.locate(levels[l], grid.table_size, unit, count);
        const T* entries = table + levels[l].offset * features;
        T* out = encoded + l * features;
        if constexpr (F > 0) {
            using V = typename Entry<T, F>::Vec;
            for (int p = 0; p < count; ++p) {
                V sum{};
#pragma GCC unroll 8
                for (int c = 0; c < cells.corners; ++c)
                    sum += cells.weight[c][p] *
                           load_entry<V>(entries + static_cast<int64_t>(cells.index[c][p]) * F);
                std::memcpy(out + p * stride, &sum, sizeof(sum));
            }
        } else {
            for (int p = 0; p < count; ++p)
                for (int f = 0; f < features; ++f) {
                    T sum = 0;
                    for (int c = 0; c < cells.corners; ++c)
                        sum += cells.weight[c][p] *
                               entries[static_cast<int64_t>(cells.index[c][p]) * features + f];
                    out[p * stride + f] = sum;
                }
        }
    }
}

// Adds the gradient of one level's entries for n points; grad[p * stride + f] belongs to this level. One
// thread owns a level, so that no two threads meet and the sum has one order.
template <class T, int N, int F>
inline void grid_scatter_level(const GridShape& grid, const GridLevel& level, const T* x, int64_t n,
                               const T* grad, int64_t stride, T* grad_table) {
    const int features = F ? F : grid.features;
    T* entries = grad_table + level.offset * features;
    GridCells<T, N> cells;
    T unit[N][kGridBlock];
    for (int64_t start = 0; start < n; start += kGridBlock) {
        const int count = static_cast<int>(std::min<int64_t>(kGridBlock, n - start));
        load_unit<T, N>(x + start * N, count, unit);
        cells.locate(level, grid.table_size, unit, count);
        for (int p = 0; p < count; ++p) {
            const T* g = grad + (start + p) * stride;
            if constexpr (F > 0) {
                using V = typename Entry<T, F>::Vec;
                const V gradient = load_entry<V>(g);
#pragma GCC unroll 8
                for (int c = 0; c < cells.corners; ++c) {
                    T* entry = entries + static_cast<int64_t>(cells.index[c][p]) * F;
                    const V sum = load_entry<V>(entry) + cells.weight[c][p] * gradient;
                    std::memcpy(entry, &sum, sizeof(sum));
                }
            } else {
                for (int c = 0; c < cells.corners; ++c) {
                    T* entry = entries + static_cast<int64_t>(cells.index[c][p]) * features;
                    for (int f = 0; f < features; ++f) entry[f] += cells.weight[c][p] * g[f];
                }
            }
        }
    }
}

// grad_x[p * N + d] for up to kGridBlock points, written; grad as in grid_gather
template <class T, int N, int F>
inline void grid_gradient_x(const GridShape& grid, const std::vector<GridLevel>& levels, const T* x,
                            int count, const T* table, const T* grad, int64_t stride, T* grad_x) {
    const int features = F ? F : grid.features;
    T unit[N][kGridBlock];
    load_unit<T, N>(x, count, unit);
    for (int i = 0; i < count * N; ++i) grad_x[i] = 0;
    GridCells<T, N> cells;
    for (size_t l = 0; l < levels.size(); ++l) {
        cells.locate(levels[l], grid.table_size, unit, count);
        const T* entries = table + levels[l].offset * features;
        const T scale = static_cast<T>(levels[l].resolution - 1);
        for (int p = 0; p < count; ++p) {
            const T* g = grad + p * stride + l * features;
            for (int c = 0; c < cells.corners; ++c) {
                const T* entry = entries + static_cast<int64_t>(cells.index[c][p]) * features;
                T dot = 0;
                for (int f = 0; f < (F ? F : features); ++f) dot += g[f] * entry[f];
                for (int d = 0; d < N; ++d) grad_x[p * N + d] += scale * dot * cells.weight_slope(c, d, p);
            }
        }
    }
    for (int i = 0; i < count * N; ++i) grad_x[i] *= unit_slope(x[i]);
}

}  // namespace nr
