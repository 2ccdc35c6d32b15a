// A block of output points on its way to image voxels: where its points lie. Blocks have a fixed length so
// that every loop over one is a few whole vectors; the tail of a row is padded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "math/trilinear.h"

namespace nr {

constexpr int kBlock = 32;

template <int ND>
struct ImageAxes {
    int32_t size[ND];
    int32_t stride[ND];  // elements; the wrapper refuses images of 2^31 voxels or more a channel
    int32_t
        step[ND];  // to the upper side of a cell; an axis of one voxel has no upper side and stays in place
    int64_t voxels = 1;

    explicit ImageAxes(const std::vector<int64_t>& shape) {
        for (int k = ND - 1; k >= 0; --k) {
            size[k] = static_cast<int32_t>(shape[k]);
            stride[k] = static_cast<int32_t>(voxels);
            step[k] = shape[k] > 1 ? stride[k] : 0;
            voxels *= shape[k];
        }
    }
};

// A stretch of at most kBlock points in a row of the output.
template <int ND>
struct Block {
    int64_t point;  // number of its first point in the batch item
    int length;
    int64_t index[ND];  // of the first point; of a grid, whose points have no places, only the last counts
};

template <class T, int N>
inline void copy_block(const T* from, int n, T (&to)[N]) {
    if (n == N) {
        std::memcpy(to, from, sizeof(to));
        return;
    }
    std::copy_n(from, n, to);
    std::fill(to + n, to + N, from[n - 1]);  // a value as ordinary as the others: padding need not look at it
}

template <class T, int N>
inline void store_block(const T (&from)[N], int n, T* to) {
    if (n == N)
        std::memcpy(to, from, sizeof(from));
    else
        std::copy_n(from, n, to);
}

// Where the points of one batch item come from: a normalised grid, or voxel index + displacement, then an
// affine map.
template <class T, int ND>
struct Source {
    const SampleShape& shape;
    const T* coordinates;  // (points, ND) reversed axis order for a grid; (ND, points) for a displacement
    const T* affine;       // (ND, ND + 1) or null
    int64_t points = 1;
    int64_t extent[ND];  // of the output; a grid is one row

    Source(const SampleShape& s, const T* all_coordinates, const T* all_affine, int64_t batch) : shape(s) {
        for (int64_t n : s.out) points *= n;
        for (int k = 0; k < ND; ++k) extent[k] = s.normalized ? (k == ND - 1 ? points : 1) : s.out[k];
        coordinates = all_coordinates + batch * ND * points;
        affine = all_affine ? all_affine + batch * ND * (ND + 1) : nullptr;
    }

    int64_t row() const { return extent[ND - 1]; }

    // Calls visit(block) for the points of [begin, end), a block never crossing a row.
    template <class Visit>
    void walk(int64_t begin, int64_t end, Visit&& visit) const {
        Block<ND> block;
        int64_t rest = begin;
        for (int k = ND - 1; k >= 0; --k) {
            block.index[k] = rest % extent[k];
            rest /= extent[k];
        }
        for (block.point = begin; block.point < end; block.point += block.length) {
            const int64_t left = std::min(end - block.point, row() - block.index[ND - 1]);
            block.length = static_cast<int>(std::min<int64_t>(kBlock, left));
            visit(static_cast<const Block<ND>&>(block));
            block.index[ND - 1] += block.length;
            for (int k = ND - 1; k > 0 && block.index[k] == extent[k]; --k) {
                block.index[k] = 0;
                ++block.index[k - 1];
            }
        }
    }

    // i + u of a displacement's block.
    void positions(const Block<ND>& block, T (&p)[ND][kBlock]) const {
        for (int k = 0; k < ND; ++k) {
            copy_block(coordinates + k * points + block.point, block.length, p[k]);
            const T start = static_cast<T>(block.index[k]), step = k == ND - 1 ? T(1) : T(0);
            for (int i = 0; i < kBlock; ++i) p[k][i] += start + step * static_cast<T>(i);
            std::fill(p[k] + block.length, p[k] + kBlock, p[k][block.length - 1]);
        }
    }

    // Voxel coordinates of a block before padding.
    void locate(const Block<ND>& block, const ImageAxes<ND>& axes, T (&x)[ND][kBlock]) const {
        if (shape.normalized) {
            T grid[kBlock * ND];
            const T* from = coordinates + block.point * ND;
            std::copy_n(from, block.length * ND, grid);
            for (int i = block.length; i < kBlock; ++i)
                std::copy_n(from + (block.length - 1) * ND, ND, grid + i * ND);
            for (int k = 0; k < ND; ++k) {
                const T size = static_cast<T>(axes.size[k]);
                for (int i = 0; i < kBlock; ++i)
                    x[k][i] = unnormalize(grid[i * ND + (ND - 1 - k)], size, shape.align_corners);
            }
            return;
        }
        if (!affine) return positions(block, x);
        T p[ND][kBlock];
        positions(block, p);
        for (int k = 0; k < ND; ++k) {
            const T* a = affine + k * (ND + 1);
            for (int i = 0; i < kBlock; ++i) {
                T sum = a[ND];
                for (int j = 0; j < ND; ++j) sum += a[j] * p[j][i];
                x[k][i] = sum;
            }
        }
    }
};

// Points of one batch item cut into whole rows. The sizes depend on the shape alone, so that sums over chunks
// come out the same for every number of threads.
struct Chunks {
    int64_t points, size, count;

    Chunks(int64_t points, int64_t row, int64_t wanted) : points(points) {
        size = std::max<int64_t>(1, wanted / std::max<int64_t>(1, row)) * row;
        if (row > 4 * wanted) size = wanted;
        count = size > 0 ? (points + size - 1) / size : 0;
    }
    int64_t begin(int64_t chunk) const { return chunk * size; }
    int64_t end(int64_t chunk) const { return std::min(points, (chunk + 1) * size); }
};

constexpr int64_t kChunkPoints = 1 << 12;

// Runs body(batch, chunk, item) for every chunk of every batch item.
template <class Body>
void for_chunks(int64_t batch, const Chunks& chunks, int threads, Body&& body) {
    parallel_for(batch * chunks.count, threads, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t item = begin; item < end; ++item) body(item / chunks.count, item % chunks.count, item);
    });
}

inline bool empty(const SampleShape& shape) {
    int64_t size = shape.batch * shape.channels;
    for (int64_t n : shape.out) size *= n;
    return size == 0;
}

}  // namespace nr
