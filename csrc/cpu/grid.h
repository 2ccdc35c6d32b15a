// Blocks of points in feature grids: cells and weights are computed for a block at once (vectorised), the
// corners are then gathered or scattered point by point. A grid is the levels of hash_encode or one latent
// volume.
//
// Channels: channel 0 is the value, channel 1 + k the derivative to coordinate k. C = 1 computes values
// alone, C = 1 + N all of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/ops.h"
#include "cpu/simd.h"
#include "math/hashgrid.h"

namespace nr {

constexpr int kGridBlock = 96;

struct GridLevel {
    int32_t vertices[3];  // along each axis
    bool hashed;
    bool smooth;
    uint32_t mask;   // of a hashed level: entries - 1
    int64_t offset;  // first entry of the level in the table
};

inline std::vector<GridLevel> grid_levels(const GridShape& grid) {
    std::vector<GridLevel> levels;
    int64_t offset = 0;
    for (int resolution : grid.resolutions) {
        int64_t vertices = 1;
        for (int d = 0; d < grid.ndim && vertices <= grid.table_size; ++d) vertices *= resolution;
        const bool hashed = vertices > grid.table_size;
        levels.push_back({{resolution, resolution, resolution},
                          hashed,
                          grid.smooth,
                          static_cast<uint32_t>(grid.table_size - 1),
                          offset});
        offset += hashed ? grid.table_size : vertices;
    }
    return levels;
}

// A volume (*size, channels) as a grid of one dense level.
inline GridLevel volume_level(const std::vector<int64_t>& size) {
    GridLevel level{{1, 1, 1}, false, false, 0, 0};
    for (size_t d = 0; d < size.size(); ++d) level.vertices[d] = static_cast<int32_t>(size[d]);
    return level;
}

// Coordinates of a block in [0, 1], and the factor from the derivative to them to the derivative to x.
template <class T, int N>
struct UnitBlock {
    T unit[N][kGridBlock];
    T slope[N][kGridBlock];

    UnitBlock(const T* x, int count) {
        for (int p = 0; p < count; ++p)
            for (int d = 0; d < N; ++d) {
                unit[d][p] = unit_coordinate(x[p * N + d]);
                slope[d][p] = unit_slope(x[p * N + d]);
            }
    }
};

// Where the points of a block lie in one level. weight[0][c] weighs corner c in the value, weight[1 + k][c]
// in the derivative to x_k; bit N - 1 - d of a corner's number is its step along axis d.
template <class T, int N, int C>
struct GridCells {
    static constexpr int corners = 1 << N;
    static constexpr int axes = C > 1 ? N : 1;
    uint32_t index[corners][kGridBlock];
    T weight[C][corners][kGridBlock];

    void locate(const GridLevel& level, const UnitBlock<T, N>& x, int count) {
        int32_t near[N][kGridBlock], far[N][kGridBlock];
        T upper[N][kGridBlock], slope[axes][kGridBlock];
        for (int d = 0; d < N; ++d) {
            const int32_t vertices = level.vertices[d];
            for (int p = 0; p < count; ++p) {
                T place;
                near[d][p] = grid_cell(x.unit[d][p], vertices, place);
                far[d][p] = near[d][p] + (vertices > 1 ? 1 : 0);
                upper[d][p] = place;
            }
            if (C > 1)
                for (int p = 0; p < count; ++p)
                    slope[C > 1 ? d : 0][p] = x.slope[d][p] * static_cast<T>(vertices - 1);
            if (level.smooth)
                for (int p = 0; p < count; ++p) {
                    const UpperWeight<T> w = upper_weight(upper[d][p], true);
                    upper[d][p] = w.value;
                    if (C > 1) slope[C > 1 ? d : 0][p] *= w.slope;
                }
        }
        for (int c = 0; c < corners; ++c) {
            const auto share = [&](int d, int p) {
                return (c >> (N - 1 - d)) & 1 ? upper[d][p] : 1 - upper[d][p];
            };
            for (int p = 0; p < count; ++p) {
                T w = 1;
                for (int d = 0; d < N; ++d) w *= share(d, p);
                weight[0][c][p] = w;
            }
            for (int k = 1; k < C; ++k)
                for (int p = 0; p < count; ++p) {
                    T w = (c >> (N - k)) & 1 ? slope[k - 1][p] : -slope[k - 1][p];
                    for (int d = 0; d < N; ++d)
                        if (d != k - 1) w *= share(d, p);
                    weight[k][c][p] = w;
                }
            const int32_t* i = (c >> (N - 1)) & 1 ? far[0] : near[0];
            const int32_t* j = (c >> (N - 2)) & 1 ? far[1] : near[1];
            const int32_t v1 = level.vertices[1];
            if constexpr (N == 3) {
                const int32_t* k = c & 1 ? far[2] : near[2];
                const int32_t v2 = level.vertices[2];
                if (level.hashed)
                    for (int p = 0; p < count; ++p) index[c][p] = hashed_index(i[p], j[p], k[p], level.mask);
                else
                    for (int p = 0; p < count; ++p) index[c][p] = (i[p] * v1 + j[p]) * v2 + k[p];
            } else {
                if (level.hashed)
                    for (int p = 0; p < count; ++p) index[c][p] = hashed_index(i[p], j[p], level.mask);
                else
                    for (int p = 0; p < count; ++p) index[c][p] = i[p] * v1 + j[p];
            }
        }
    }
};

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

// out[channel * channel_stride + p * stride + level * features + f] for up to kGridBlock points.
template <class T, int N, int F, int C>
inline void grid_gather(const std::vector<GridLevel>& levels, int features, const T* x, int count,
                        const T* table, T* out, int64_t stride, int64_t channel_stride) {
    const UnitBlock<T, N> unit(x, count);
    GridCells<T, N, C> cells;
    for (size_t l = 0; l < levels.size(); ++l) {
        cells.locate(levels[l], unit, count);
        const T* entries = table + levels[l].offset * features;
        T* to = out + l * features;
        for (int p = 0; p < count; ++p) {
            if constexpr (F > 0) {
                using V = typename Entry<T, F>::Vec;
                V sum[C] = {};
#pragma GCC unroll 8
                for (int c = 0; c < cells.corners; ++c) {
                    const V entry = load_entry<V>(entries + static_cast<int64_t>(cells.index[c][p]) * F);
#pragma GCC unroll 4
                    for (int k = 0; k < C; ++k) sum[k] += cells.weight[k][c][p] * entry;
                }
                for (int k = 0; k < C; ++k)
                    std::memcpy(to + k * channel_stride + p * stride, &sum[k], sizeof(V));
            } else {
                for (int k = 0; k < C; ++k) {
                    T* sum = to + k * channel_stride + p * stride;
                    for (int f = 0; f < features; ++f) sum[f] = 0;
                    for (int c = 0; c < cells.corners; ++c) {
                        const T w = cells.weight[k][c][p];
                        const T* entry = entries + static_cast<int64_t>(cells.index[c][p]) * features;
                        for (int f = 0; f < features; ++f) sum[f] += w * entry[f];
                    }
                }
            }
        }
    }
}

// Adds the gradient of one level's entries for n points: grad[(p * C + channel) * features + f], features of
// [first, last) alone where F is 0. One thread owns a level (or its features), so that no two threads meet
// and the sum has one order.
template <class T, int N, int F, int C>
inline void grid_scatter(const GridLevel& level, int features, int first, int last, const T* x, int64_t n,
                         const T* grad, T* grad_table) {
    T* entries = grad_table + level.offset * features;
    GridCells<T, N, C> cells;
    for (int64_t start = 0; start < n; start += kGridBlock) {
        const int count = static_cast<int>(std::min<int64_t>(kGridBlock, n - start));
        cells.locate(level, UnitBlock<T, N>(x + start * N, count), count);
        for (int p = 0; p < count; ++p) {
            const T* g = grad + (start + p) * C * features;
            if constexpr (F > 0) {
                using V = typename Entry<T, F>::Vec;
                V gradient[C];
                for (int k = 0; k < C; ++k) gradient[k] = load_entry<V>(g + k * F);
#pragma GCC unroll 8
                for (int c = 0; c < cells.corners; ++c) {
                    T* entry = entries + static_cast<int64_t>(cells.index[c][p]) * F;
                    V sum = load_entry<V>(entry);
#pragma GCC unroll 4
                    for (int k = 0; k < C; ++k) sum += cells.weight[k][c][p] * gradient[k];
                    std::memcpy(entry, &sum, sizeof(sum));
                }
            } else {
                for (int c = 0; c < cells.corners; ++c) {
                    T* entry = entries + static_cast<int64_t>(cells.index[c][p]) * features;
                    for (int k = 0; k < C; ++k) {
                        const T w = cells.weight[k][c][p];
                        for (int f = first; f < last; ++f) entry[f] += w * g[k * features + f];
                    }
                }
            }
        }
    }
}

// The part of grad_x that comes through the derivative channels: their weights' derivatives.
template <class T, int N>
inline void second_order(const GridLevel& level, const UnitBlock<T, N>& x, int p, const T (*dot)[1 << N],
                         T* grad_x) {
    UpperWeight<T> w[N];
    for (int d = 0; d < N; ++d) {
        T place;
        grid_cell(x.unit[d][p], level.vertices[d], place);
        w[d] = upper_weight(place, level.smooth);
        const T scale = x.slope[d][p] * static_cast<T>(level.vertices[d] - 1);
        w[d].slope *= scale;
        w[d].curvature *= scale * scale;
    }
    for (int c = 0; c < (1 << N); ++c)
        for (int k = 0; k < N; ++k)
            for (int d = 0; d < N; ++d) {
                T product = dot[1 + k][c];
                for (int axis = 0; axis < N; ++axis) {
                    const bool up = (c >> (N - 1 - axis)) & 1;
                    if (axis == d && axis == k)
                        product *= up ? w[axis].curvature : -w[axis].curvature;
                    else if (axis == d || axis == k)
                        product *= up ? w[axis].slope : -w[axis].slope;
                    else
                        product *= up ? w[axis].value : 1 - w[axis].value;
                }
                grad_x[d] += product;
            }
}

// Adds to grad_x[p * N + d] for up to kGridBlock points; grad as out in grid_gather.
template <class T, int N, int F, int C>
inline void grid_gradient_x(const std::vector<GridLevel>& levels, int features, const T* x, int count,
                            const T* table, const T* grad, int64_t stride, int64_t channel_stride,
                            T* grad_x) {
    constexpr int corners = 1 << N;
    const UnitBlock<T, N> unit(x, count);
    GridCells<T, N, N + 1> cells;
    for (size_t l = 0; l < levels.size(); ++l) {
        const GridLevel& level = levels[l];
        cells.locate(level, unit, count);
        const T* entries = table + level.offset * features;
        for (int p = 0; p < count; ++p) {
            T dot[C][corners];  // <gradient of the channel, entry of the corner>
            for (int c = 0; c < corners; ++c) {
                const T* entry = entries + static_cast<int64_t>(cells.index[c][p]) * features;
                for (int k = 0; k < C; ++k) {
                    const T* g = grad + k * channel_stride + p * stride + l * features;
                    T sum = 0;
                    for (int f = 0; f < (F ? F : features); ++f) sum += g[f] * entry[f];
                    dot[k][c] = sum;
                }
            }
            for (int d = 0; d < N; ++d)
                for (int c = 0; c < corners; ++c) grad_x[p * N + d] += dot[0][c] * cells.weight[1 + d][c][p];
            if constexpr (C > 1) second_order(level, unit, p, dot, grad_x + p * N);
        }
    }
}

}  // namespace nr
