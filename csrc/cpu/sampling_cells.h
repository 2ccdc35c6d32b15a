// The voxels around a block of points: the cell of every point, its corners' values, and the adjoint.
#pragma once

#include "cpu/sampling_block.h"
#include "math/half.h"

namespace nr {

// Applies the padding to coordinates of one axis; slope is d(result) / d(x). Every result converts to int32
// safely: with zeros, what lies outside is brought to a place just outside, NaN included.
template <class T>
void pad(Padding padding, bool align_corners, T size, T (&x)[kBlock], T (&slope)[kBlock]) {
    for (int i = 0; i < kBlock; ++i) slope[i] = 1;
    if (padding == Padding::kZeros) {
        T ignored = 0;
        for (int i = 0; i < kBlock; ++i) x[i] = clip(x[i], T(-2), size + 1, ignored);
        return;
    }
    if (padding == Padding::kReflection)
        for (int i = 0; i < kBlock; ++i) x[i] = reflect(x[i], size, align_corners, slope[i]);
    for (int i = 0; i < kBlock; ++i) x[i] = clip(x[i], T(0), size - 1, slope[i]);
}

// The cells that a block reads. A cell that leaves the image is moved to the nearest one inside, so that its
// voxels can be loaded; `from` says which of them each side of the true cell is.
template <class T, int ND>
struct Cells {
    T weight[ND][kBlock];
    int32_t base[kBlock];  // offset of the lowest voxel of the loaded cell
    bool inside[ND];  // padding did nothing along this axis: the slope is 1, and what follows is not filled
    T slope[ND][kBlock];          // d(padded coordinate) / d(coordinate)
    int32_t from[ND][2][kBlock];  // by side: 0 lower, 1 upper voxel of the loaded cell, -1 outside
};

template <class T, int ND>
void find_cells(const SampleShape& shape, const ImageAxes<ND>& axes, T (&x)[ND][kBlock],
                Cells<T, ND>& cells) {
    std::fill_n(cells.base, kBlock, 0);
    for (int k = 0; k < ND; ++k) {
        const int32_t size = axes.size[k], highest = std::max(size - 2, 0);
        const T last = static_cast<T>(size - 1);
        int32_t outside = 0;
        for (int i = 0; i < kBlock; ++i) outside |= !(x[k][i] > 0) | !(x[k][i] < last);
        cells.inside[k] = outside == 0;
        if (cells.inside[k]) {  // as for most blocks
            for (int i = 0; i < kBlock; ++i) {
                const int32_t cell = static_cast<int32_t>(x[k][i]);
                cells.weight[k][i] = x[k][i] - static_cast<T>(cell);
                cells.base[i] += cell * axes.stride[k];
            }
            continue;
        }
        pad(shape.padding, shape.align_corners, static_cast<T>(size), x[k], cells.slope[k]);
        // A clipped coordinate on the last voxel belongs to the cell below it.
        const int32_t limit = shape.padding == Padding::kZeros ? size + 1 : size - 2;
        int32_t low[kBlock];
        for (int i = 0; i < kBlock; ++i) {
            int32_t cell = static_cast<int32_t>(x[k][i]);
            cell -= x[k][i] < static_cast<T>(cell) ? 1 : 0;
            low[i] = std::min(cell, limit);
            cells.weight[k][i] = x[k][i] - static_cast<T>(low[i]);
            cells.base[i] += std::min(std::max(low[i], 0), highest) * axes.stride[k];
        }
        for (int side = 0; side < 2; ++side)
            for (int i = 0; i < kBlock; ++i) {
                const int32_t loaded = std::min(std::max(low[i], 0), highest), at = low[i] + side;
                cells.from[k][side][i] = (at >= 0) & (at < size) ? at - loaded : -1;
            }
    }
}

// What padding makes of a derivative along every axis. A select rather than a product: a coordinate that
// padding moved has none even where the image is not finite.
template <class T, int ND>
void apply_slopes(const Cells<T, ND>& cells, T (&g)[ND][kBlock]) {
    for (int k = 0; k < ND; ++k)
        for (int i = 0; i < kBlock && !cells.inside[k]; ++i)
            g[k][i] = cells.slope[k][i] != 0 ? g[k][i] * cells.slope[k][i] : T(0);
}

// Offset of a row of two voxels of a cell; row r has the sides of the leading axes as its bits.
template <int ND>
int64_t row_offset(const ImageAxes<ND>& axes, int row) {
    int64_t offset = 0;
    for (int k = 0; k < ND - 1; ++k)
        offset += ((row >> (ND - 2 - k)) & 1) * static_cast<int64_t>(axes.step[k]);
    return offset;
}

// Calls visit(from, low, high) for every pair of corners that differ along one axis, where padding was at
// work.
template <class T, int ND, class Visit>
void for_padded_edges(const Cells<T, ND>& cells, Visit&& visit) {
    for (int k = 0; k < ND; ++k) {
        const int bit = 1 << (ND - 1 - k);
        for (int c = 0; c < (1 << ND) && !cells.inside[k]; ++c)
            if (!(c & bit)) visit(cells.from[k], c, c | bit);
    }
}

// Corner values of a block, 0 outside the image. S is the type in memory.
template <class S, class T, int ND>
void gather(const ImageAxes<ND>& axes, const Cells<T, ND>& cells, const S* image, T (&v)[1 << ND][kBlock]) {
    constexpr int kRows = 1 << (ND - 1);
    const S* row[kRows];
    for (int r = 0; r < kRows; ++r) row[r] = image + row_offset(axes, r);
    if (axes.step[ND - 1] == 1) {
        // Both voxels of a row lie side by side: one load instead of two. Vector gathers are no faster where
        // they are sound, and several times slower where the processor's microcode mends a leak in them.
        S pair[kRows][2 * kBlock];
        for (int i = 0; i < kBlock; ++i)
            for (int r = 0; r < kRows; ++r)
                std::memcpy(&pair[r][2 * i], row[r] + cells.base[i], 2 * sizeof(S));
        for (int r = 0; r < kRows; ++r)
            for (int i = 0; i < kBlock; ++i) {
                v[2 * r][i] = widen(pair[r][2 * i]);
                v[2 * r + 1][i] = widen(pair[r][2 * i + 1]);
            }
    } else {
        for (int r = 0; r < kRows; ++r)
            for (int i = 0; i < kBlock; ++i) v[2 * r][i] = v[2 * r + 1][i] = widen(row[r][cells.base[i]]);
    }
    for_padded_edges(cells, [&](const int32_t (&from)[2][kBlock], int low, int high) {
        for (int i = 0; i < kBlock; ++i) {
            const T a = v[low][i], b = v[high][i];
            v[low][i] = from[0][i] == 0 ? a : from[0][i] == 1 ? b : T(0);
            v[high][i] = from[1][i] == 0 ? a : from[1][i] == 1 ? b : T(0);
        }
    });
}

// The point-wise formulas of math/trilinear.h take one point's corners and weights.
template <class T, int N>
inline void take(const T (&rows)[N][kBlock], int i, T (&column)[N]) {
    for (int j = 0; j < N; ++j) column[j] = rows[j][i];
}

// The adjoint: adds n points' corner values to the image. v is changed.
template <class T, int ND>
void scatter(const ImageAxes<ND>& axes, const Cells<T, ND>& cells, int n, T (&v)[1 << ND][kBlock], T* image) {
    for_padded_edges(cells, [&](const int32_t (&from)[2][kBlock], int low, int high) {
        for (int i = 0; i < kBlock; ++i) {
            const T a = v[low][i], b = v[high][i];
            v[low][i] = (from[0][i] == 0 ? a : T(0)) + (from[1][i] == 0 ? b : T(0));
            v[high][i] = (from[0][i] == 1 ? a : T(0)) + (from[1][i] == 1 ? b : T(0));
        }
    });
    constexpr int kRows = 1 << (ND - 1);
    T* row[kRows];
    for (int r = 0; r < kRows; ++r) row[r] = image + row_offset(axes, r);
    const int64_t next = axes.step[ND - 1];
    for (int i = 0; i < n; ++i)
        for (int r = 0; r < kRows; ++r) {
            T* to = row[r] + cells.base[i];
            to[0] += v[2 * r][i];
            to[next] += v[2 * r + 1][i];
        }
}

// Nearest voxel of each point, halves to the even one as torch rounds; outside the image some voxel and
// inside = 0.
template <class T, int ND>
void find_nearest(const SampleShape& shape, const ImageAxes<ND>& axes, T (&x)[ND][kBlock],
                  int32_t (&voxel)[kBlock], int32_t (&inside)[kBlock]) {
    T slope[kBlock];
    std::fill_n(voxel, kBlock, 0);
    std::fill_n(inside, kBlock, 1);
    for (int k = 0; k < ND; ++k) {
        pad(shape.padding, shape.align_corners, static_cast<T>(axes.size[k]), x[k], slope);
        for (int i = 0; i < kBlock; ++i) {
            const int32_t at = static_cast<int32_t>(std::nearbyint(x[k][i]));
            const int32_t clamped = std::min(std::max(at, 0), axes.size[k] - 1);
            inside[i] &= at == clamped ? 1 : 0;
            voxel[i] += clamped * axes.stride[k];
        }
    }
}

}  // namespace nr
