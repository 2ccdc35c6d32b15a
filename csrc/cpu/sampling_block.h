// A block of output points on its way to image voxels: coordinates, then the cell and the weights of each
// point. Blocks have a fixed length so that every loop over one is a few whole vectors; the tail of a row is
// padded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/ops.h"
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

// Where the points of one batch item come from: a normalised grid, or voxel index + displacement, then an
// affine map.
template <class T, int ND>
struct Source {
    const SampleShape& shape;
    const T* coordinates;  // (points, ND) reversed axis order for a grid; (ND, points) for a displacement
    const T* affine;       // (ND, ND + 1) or null
    int64_t points;
    int64_t row;  // points that share all leading indices

    Source(const SampleShape& s, const T* all_coordinates, const T* all_affine, int64_t batch) : shape(s) {
        points = 1;
        for (int64_t n : s.out) points *= n;
        row = s.normalized ? points : s.out.back();
        coordinates = all_coordinates + batch * ND * points;
        affine = all_affine ? all_affine + batch * ND * (ND + 1) : nullptr;
    }

    // Length of the block that starts at `point`, at most up to `end` and never across a row.
    int length(int64_t point, int64_t end) const {
        const int64_t limit = std::min<int64_t>(end, (point / row + 1) * row);
        return static_cast<int>(std::min<int64_t>(kBlock, limit - point));
    }

    // i + u of a displacement's block.
    void positions(int64_t point, int n, T (&p)[ND][kBlock]) const {
        int64_t rest = point;
        for (int k = ND - 1; k >= 0; --k) {
            const T start = static_cast<T>(rest % shape.out[k]);
            const T step = k == ND - 1 ? T(1) : T(0);
            rest /= shape.out[k];
            const T* u = coordinates + k * points + point;
            for (int i = 0; i < n; ++i) p[k][i] = start + step * static_cast<T>(i) + u[i];
            for (int i = n; i < kBlock; ++i) p[k][i] = 0;
        }
    }

    // Voxel coordinates of a block before padding.
    void locate(int64_t point, int n, const ImageAxes<ND>& axes, T (&x)[ND][kBlock]) const {
        if (shape.normalized) {
            const T* grid = coordinates + point * ND;
            for (int k = 0; k < ND; ++k) {
                const T size = static_cast<T>(axes.size[k]);
                for (int i = 0; i < n; ++i)
                    x[k][i] = unnormalize(grid[i * ND + (ND - 1 - k)], size, shape.align_corners);
                for (int i = n; i < kBlock; ++i) x[k][i] = 0;
            }
            return;
        }
        if (!affine) return positions(point, n, x);
        T p[ND][kBlock];
        positions(point, n, p);
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
    T slope[ND][kBlock];
    int32_t base[kBlock];         // offset of the lowest voxel of the loaded cell
    bool interior;                // no cell was moved: `from` is not filled
    int32_t from[ND][2][kBlock];  // per axis and side: 0 lower, 1 upper voxel of the loaded cell, -1 outside
};

template <class T, int ND>
void find_cells(const SampleShape& shape, const ImageAxes<ND>& axes, T (&x)[ND][kBlock],
                Cells<T, ND>& cells) {
    int32_t low[ND][kBlock];
    int32_t outside = 0;
    for (int k = 0; k < ND; ++k) {
        const int32_t size = axes.size[k];
        pad(shape.padding, shape.align_corners, static_cast<T>(size), x[k], cells.slope[k]);
        // A clipped coordinate on the last voxel belongs to the cell below it, which keeps the block
        // interior.
        const int32_t highest = shape.padding == Padding::kZeros ? size + 1 : size - 2;
        for (int i = 0; i < kBlock; ++i) {
            int32_t cell = static_cast<int32_t>(x[k][i]);
            cell -= x[k][i] < static_cast<T>(cell) ? 1 : 0;
            cell = std::min(cell, highest);
            low[k][i] = cell;
            cells.weight[k][i] = x[k][i] - static_cast<T>(cell);
            outside |= cell | (size - 2 - cell);  // negative when either side is out
        }
    }
    cells.interior = outside >= 0;
    std::fill_n(cells.base, kBlock, 0);
    for (int k = 0; k < ND; ++k) {
        const int32_t size = axes.size[k], highest = std::max(size - 2, 0);
        for (int i = 0; i < kBlock; ++i) {
            const int32_t loaded = std::min(std::max(low[k][i], 0), highest);
            cells.base[i] += loaded * axes.stride[k];
        }
        if (cells.interior) continue;
        for (int side = 0; side < 2; ++side)
            for (int i = 0; i < kBlock; ++i) {
                const int32_t loaded = std::min(std::max(low[k][i], 0), highest);
                const int32_t at = low[k][i] + side;
                cells.from[k][side][i] = (at >= 0) & (at < size) ? at - loaded : -1;
            }
    }
}

// Offset of a row of two voxels of a cell; row r has the sides of the leading axes as its bits.
template <int ND>
int64_t row_offset(const ImageAxes<ND>& axes, int row) {
    int64_t offset = 0;
    for (int k = 0; k < ND - 1; ++k)
        offset += ((row >> (ND - 2 - k)) & 1) * static_cast<int64_t>(axes.step[k]);
    return offset;
}

// Calls visit(k, low, high) for every axis and every pair of corners that differ along it.
template <int ND, class Visit>
void for_edges(Visit&& visit) {
    for (int k = 0; k < ND; ++k) {
        const int bit = 1 << (ND - 1 - k);
        for (int c = 0; c < (1 << ND); ++c)
            if (!(c & bit)) visit(k, c, c | bit);
    }
}

// Corner values of a block, 0 outside the image.
template <class T, int ND>
void gather(const ImageAxes<ND>& axes, const Cells<T, ND>& cells, const T* image, T (&v)[1 << ND][kBlock]) {
    constexpr int kRows = 1 << (ND - 1);
    const T* row[kRows];
    for (int r = 0; r < kRows; ++r) row[r] = image + row_offset(axes, r);
    if (axes.step[ND - 1] == 1) {
        // Both voxels of a row lie side by side: one load instead of two.
        T pair[kRows][2 * kBlock];
        for (int i = 0; i < kBlock; ++i)
            for (int r = 0; r < kRows; ++r)
                std::memcpy(&pair[r][2 * i], row[r] + cells.base[i], 2 * sizeof(T));
        for (int r = 0; r < kRows; ++r)
            for (int i = 0; i < kBlock; ++i) {
                v[2 * r][i] = pair[r][2 * i];
                v[2 * r + 1][i] = pair[r][2 * i + 1];
            }
    } else {
        for (int r = 0; r < kRows; ++r)
            for (int i = 0; i < kBlock; ++i) v[2 * r][i] = v[2 * r + 1][i] = row[r][cells.base[i]];
    }
    if (cells.interior) return;
    for_edges<ND>([&](int k, int low, int high) {
        const int32_t (&from)[2][kBlock] = cells.from[k];
        for (int i = 0; i < kBlock; ++i) {
            const T a = v[low][i], b = v[high][i];
            v[low][i] = from[0][i] == 0 ? a : from[0][i] == 1 ? b : T(0);
            v[high][i] = from[1][i] == 0 ? a : from[1][i] == 1 ? b : T(0);
        }
    });
}

// The adjoint: adds n points' corner values to the image. v is changed.
template <class T, int ND>
void scatter(const ImageAxes<ND>& axes, const Cells<T, ND>& cells, int n, T (&v)[1 << ND][kBlock], T* image) {
    if (!cells.interior) {
        for_edges<ND>([&](int k, int low, int high) {
            const int32_t (&from)[2][kBlock] = cells.from[k];
            for (int i = 0; i < kBlock; ++i) {
                const T a = v[low][i], b = v[high][i];
                v[low][i] = (from[0][i] == 0 ? a : T(0)) + (from[1][i] == 0 ? b : T(0));
                v[high][i] = (from[0][i] == 1 ? a : T(0)) + (from[1][i] == 1 ? b : T(0));
            }
        });
    }
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
