// How a volume is cut into the work items of streamed boxes: by shape alone, so that results do not depend on
// the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace nr {

constexpr int64_t kChunkPlanes =
    64;  // planes that one work item streams; before them it warms up for one window

// One work item is a strip of rows times a chunk of planes of one channel.
struct BoxItems {
    int64_t rows, strips, chunks, planes, planes_all, rows_all;

    BoxItems(int64_t rows, int64_t rows_all, int64_t planes_all)
        : rows(rows),
          strips((rows_all + rows - 1) / rows),
          chunks((planes_all + kChunkPlanes - 1) / kChunkPlanes),
          planes((planes_all + chunks - 1) / chunks),
          planes_all(planes_all),
          rows_all(rows_all) {}
    int64_t count() const { return strips * chunks; }
    int64_t z0(int64_t item) const { return item / strips * planes; }
    int64_t z1(int64_t item) const { return std::min(planes_all, z0(item) + planes); }
    int64_t y0(int64_t item) const { return item % strips * rows; }
    int64_t y1(int64_t item) const { return std::min(rows_all, y0(item) + rows); }
};

}  // namespace nr
