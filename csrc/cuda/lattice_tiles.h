// How blocks divide the volumes of a dense field, the neighbours that a difference is taken of, and sums over
// all blocks in a fixed order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "cuda/lattice.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "math/config.h"

namespace nr {
namespace gpu {

constexpr int kTileWidth = 32, kTileRows = 8;  // columns of a block, one a thread
constexpr int kTilePlanes = 16;                // planes that it goes through
constexpr int kLatticeThreads = kTileWidth * kTileRows;

// 2-D is one plane of 3-D. The division depends on sizes alone, so that sums are the same on every device.
struct LatticeTiles {
    int planes = 1, rows = 1, width = 1;
    int along_z = 0, along_y = 0, along_x = 0;  // tiles of a volume
    int64_t voxels = 0;                         // of a volume
    int64_t blocks = 0;                         // of all volumes

    LatticeTiles(int64_t volumes, const std::vector<int64_t>& size) {
        const size_t axes = size.size();
        voxels = 1;
        for (int64_t n : size) {
            if (n != 0 && voxels > INT32_MAX / n)
                throw std::runtime_error("a dense field has 2^31 or more voxels");
            voxels *= n;
        }
        planes = axes == 3 ? static_cast<int>(size[0]) : 1;
        rows = static_cast<int>(size[axes - 2]);
        width = static_cast<int>(size[axes - 1]);
        along_z = (planes + kTilePlanes - 1) / kTilePlanes;
        along_y = (rows + kTileRows - 1) / kTileRows;
        along_x = (width + kTileWidth - 1) / kTileWidth;
        blocks = volumes * along_z * along_y * along_x;
    }
    NR_HD int slice() const { return rows * width; }
};

// A thread's column of a tile: planes z0 ... z1 - 1.
struct LatticeColumn {
    int64_t volume;
    int x, y, z0, z1;
    bool inside;

    __device__ explicit LatticeColumn(const LatticeTiles& tiles) {
        int tile = static_cast<int>(blockIdx.x);
        x = tile % tiles.along_x * kTileWidth + static_cast<int>(threadIdx.x) % kTileWidth;
        tile /= tiles.along_x;
        y = tile % tiles.along_y * kTileRows + static_cast<int>(threadIdx.x) / kTileWidth;
        tile /= tiles.along_y;
        z0 = tile % tiles.along_z * kTilePlanes;
        z1 = z0 + kTilePlanes < tiles.planes ? z0 + kTilePlanes : tiles.planes;
        volume = tile / tiles.along_z;
        inside = x < tiles.width && y < tiles.rows;
    }
};

// The two neighbours whose difference is the derivative at a point, as steps from there.
template <class T>
struct LatticeDifference {
    int lower, upper;
    T factor;
};

// A scheme along an axis. Where a neighbour is missing the one-sided difference that exists is taken; along
// an axis of one voxel the derivative is 0.
template <class T>
struct LatticeAxis {
    int size = 1, before = 0, after = 1;
    T whole = 0, half = 0;  // 1 / (steps spacing)

    LatticeAxis() = default;
    LatticeAxis(int size, double spacing, Scheme scheme)
        : size(size),
          before(scheme == Scheme::kForward ? 0 : 1),
          after(scheme == Scheme::kBackward ? 0 : 1),
          whole(static_cast<T>(1 / spacing)),
          half(static_cast<T>(1 / (2 * spacing))) {}

    __device__ LatticeDifference<T> at(int i) const {
        int lower = i - before, upper = i + after;
        if (lower < 0) lower = 0, upper = 1;
        if (upper >= size) lower = size - 2, upper = size - 1;
        if (size == 1) lower = upper = 0;
        const int steps = upper - lower;
        return {lower - i, upper - i, steps == 2 ? half : steps == 1 ? whole : T(0)};
    }
    // What the value at `to` weighs in the derivative at `from`; 0 where there is no such point.
    __device__ T weight(int from, int to) const {
        if (from < 0 || from >= size) return 0;
        const LatticeDifference<T> d = at(from);
        const int step = to - from;
        return (step == d.upper ? d.factor : T(0)) - (step == d.lower ? d.factor : T(0));
    }
};

// What has no weight does not count even where it is not finite.
template <class T>
__device__ inline T weighted(T weight, T value) {
    return weight != 0 ? weight * value : T(0);
}

struct LatticeSum {
    double value, folds;
};

// Every thread of the block calls this.
__device__ inline void leave_sum(double value, double folds, LatticeSum* partial) {
    value = block_sum(value);
    folds = block_sum(folds);
    if (threadIdx.x == 0) partial[blockIdx.x] = {value, folds};
}

// One block: the sums of all blocks in their order, the value divided by count.
template <class T>
__global__ void __launch_bounds__(kLatticeThreads)
    lattice_total(const LatticeSum* partial, int64_t blocks, double count, T* value, int64_t* folds) {
    double sum = 0, found = 0;
    for (int64_t i = threadIdx.x; i < blocks; i += kLatticeThreads) {
        sum += partial[i].value;
        found += partial[i].folds;
    }
    sum = block_sum(sum);
    found = block_sum(found);
    if (threadIdx.x != 0) return;
    *value = static_cast<T>(sum / (count < 1 ? 1.0 : count));
    if (folds) *folds = static_cast<int64_t>(found);
}

}  // namespace gpu
}  // namespace nr
