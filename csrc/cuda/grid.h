// A point in one level of a feature grid: the cell that holds it, its corners' entries and weights. Shared by
// the encoding on its own and by the fused field.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/encoding.h"
#include "math/hashgrid.h"

namespace nr {
namespace gpu {

template <class T, int N>
struct GridCell {
    int32_t low[N], high[N];
    UpperWeight<T> upper[N];  // with derivatives to x

    __device__ __forceinline__ GridCell(const GridLevel& level, bool smooth, const T* x) {
#pragma unroll
        for (int d = 0; d < N; ++d) {
            const int32_t vertices = level.size[d];
            T place;
            low[d] = grid_cell(unit_coordinate(x[d]), vertices, place);
            high[d] = low[d] + 1 < vertices ? low[d] + 1 : vertices - 1;
            const T rate = static_cast<T>(vertices - 1) * unit_slope(x[d]);
            upper[d] = upper_weight(place, smooth);
            upper[d].slope *= rate;
            upper[d].curvature *= rate * rate;
        }
    }

    // Bit N - 1 - d of a corner's number is its step along axis d.
    __device__ __forceinline__ static bool is_upper(int corner, int d) { return corner >> (N - 1 - d) & 1; }

    __device__ __forceinline__ int64_t entry(const GridLevel& level, int corner) const {
        int32_t v[N];
#pragma unroll
        for (int d = 0; d < N; ++d) v[d] = is_upper(corner, d) ? high[d] : low[d];
        if (level.mask) {
            if constexpr (N == 3) return level.offset + hashed_index(v[0], v[1], v[2], level.mask);
            return level.offset + hashed_index(v[0], v[1], level.mask);
        }
        int64_t index = v[0];
#pragma unroll
        for (int d = 1; d < N; ++d) index = index * level.size[d] + v[d];
        return level.offset + index;
    }

    // The corner's weight, differentiated along axes j and k; -1 stands for none.
    __device__ __forceinline__ T weight(int corner, int j = -1, int k = -1) const {
        T product = 1;
#pragma unroll
        for (int d = 0; d < N; ++d) {
            const int order = (d == j) + (d == k);
            const T of = order == 0 ? upper[d].value : order == 1 ? upper[d].slope : upper[d].curvature;
            product *= is_upper(corner, d) ? of : (order == 0 ? 1 - of : -of);
        }
        return product;
    }
};

template <class T>
struct alignas(2 * sizeof(T)) Pair {
    T v[2];
};

// Two neighbouring features at once where they lie so that one load fetches them.
__device__ __forceinline__ bool in_pairs(const GridLayout& grid) {
    return grid.channel_stride == 1 && grid.features % 2 == 0;
}

template <class T>
__device__ __forceinline__ Pair<T> load_features(const GridLayout& grid, const T* table, int64_t entry, int f,
                                                 bool pairs) {
    const T* at = table + entry * grid.entry_stride + f * grid.channel_stride;
    if (pairs) return *reinterpret_cast<const Pair<T>*>(at);
    return {{*at, T(0)}};
}

// Calls put(feature, row, value) for a level's features of a point: the value, and the slopes along each axis
// where rows is 1 + N.
template <class T, int N, int rows, class Put>
__device__ __forceinline__ void gather_level(const GridLayout& grid, const GridLevel& level, const T* table,
                                             const T* x, const Put& put) {
    const GridCell<T, N> cell(level, grid.smooth, x);
    const bool pairs = in_pairs(grid);
    for (int f = 0; f < grid.features; f += pairs ? 2 : 1) {
        T sum[rows][2] = {};
#pragma unroll
        for (int c = 0; c < 1 << N; ++c) {
            const Pair<T> value = load_features(grid, table, cell.entry(level, c), f, pairs);
#pragma unroll
            for (int j = 0; j < rows; ++j) {
                const T w = cell.weight(c, j - 1);
                sum[j][0] += w * value.v[0];
                sum[j][1] += w * value.v[1];
            }
        }
#pragma unroll
        for (int j = 0; j < rows; ++j) {
            put(f, j, sum[j][0]);
            if (pairs) put(f + 1, j, sum[j][1]);
        }
    }
}

}  // namespace gpu
}  // namespace nr
