// Levels of feature grids, and where a block of points lies in one. A grid is the levels of hash_encode or
// one latent volume.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/ops.h"
#include "math/hashgrid.h"

namespace nr {

constexpr int kGridBlock = 96;

struct GridLevel {
    int32_t vertices[3];  // along each axis
    bool hashed;
    bool smooth;
    uint32_t mask;   // of a hashed level: entries - 1
    int64_t offset;  // first entry of the level in the table
    int64_t entries;
};

inline std::vector<GridLevel> grid_levels(const GridShape& grid) {
    std::vector<GridLevel> levels;
    int64_t offset = 0;
    for (int resolution : grid.resolutions) {
        int64_t vertices = 1;
        for (int d = 0; d < grid.ndim && vertices <= grid.table_size; ++d) vertices *= resolution;
        const bool hashed = vertices > grid.table_size;
        const int64_t entries = hashed ? grid.table_size : vertices;
        levels.push_back({{resolution, resolution, resolution},
                          hashed,
                          grid.smooth,
                          static_cast<uint32_t>(grid.table_size - 1),
                          offset,
                          entries});
        offset += entries;
    }
    return levels;
}

// A volume (*size, channels) as a grid of one dense level.
inline GridLevel volume_level(const std::vector<int64_t>& size) {
    GridLevel level{{1, 1, 1}, false, false, 0, 0, 1};
    for (size_t d = 0; d < size.size(); ++d) {
        level.vertices[d] = static_cast<int32_t>(size[d]);
        level.entries *= size[d];
    }
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

// Where the points of a block lie in one level: entries at the corners of their cells (numbered as in
// math/multilinear.h), weights of the upper corners, and the weights' first and second derivatives to x.
template <class T, int N>
struct GridCells {
    static constexpr int corners = 1 << N;
    alignas(64) uint32_t index[corners][kGridBlock];
    alignas(64) T upper[N][kGridBlock], slope[N][kGridBlock], curvature[N][kGridBlock];

    void locate(const GridLevel& level, const T* place, int count) {
        const UnitBlock<T, N> x(place, count);
        int32_t near[N][kGridBlock], far[N][kGridBlock];
        for (int d = 0; d < N; ++d) {
            const int32_t vertices = level.vertices[d], step = vertices > 1 ? 1 : 0;
            const T cells = static_cast<T>(vertices - 1);
            for (int p = 0; p < count; ++p) {
                near[d][p] = grid_cell(x.unit[d][p], vertices, upper[d][p]);
                far[d][p] = near[d][p] + step;
                slope[d][p] = x.slope[d][p] * cells;
                curvature[d][p] = 0;
            }
            if (!level.smooth) continue;
            for (int p = 0; p < count; ++p) {
                const UpperWeight<T> w = upper_weight(upper[d][p], true);
                upper[d][p] = w.value;
                curvature[d][p] = w.curvature * slope[d][p] * slope[d][p];
                slope[d][p] *= w.slope;
            }
        }
        const int32_t v1 = level.vertices[1];
        for (int c = 0; c < corners; ++c) {
            const int32_t* i = (c >> (N - 1)) & 1 ? far[0] : near[0];
            const int32_t* j = (c >> (N - 2)) & 1 ? far[1] : near[1];
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

}  // namespace nr
