// One thread, one output point: where it lies, the voxels around it, and derivatives back to what the caller
// gave. Neighbouring threads have neighbouring points of the last axis.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/sampling.h"
#include "math/half.h"
#include "math/trilinear.h"

namespace nr {
namespace gpu {

constexpr int kSampleThreads = 256;
// Blocks that have to fit on a multiprocessor: no more, or registers spill.
template <class T>
constexpr int kSampleBlocks = sizeof(T) == 4 ? 3 : 2;

// Loads of what no thread writes.
template <class T>
__device__ __forceinline__ T load(const T* at) {
    return __ldg(at);
}
__device__ __forceinline__ Bfloat16 load(const Bfloat16* at) { return {__ldg(&at->bits)}; }
__device__ __forceinline__ Float16 load(const Float16* at) { return {__ldg(&at->bits)}; }

// Where the points of a call come from and the axes of the image that they are in. Travels with a launch.
template <class T, int ND>
struct Source {
    const T* coordinates;
    const T* affine;
    int64_t batch, channels, points, voxels;  // points and voxels of one channel
    int64_t extent[ND];                       // of the output, unless it is a grid's
    int32_t size[ND], stride[ND];             // of the image, in elements
    bool normalized, align_corners;
    Padding padding;

    Source(const SampleShape& shape, const T* coordinates, const T* affine)
        : coordinates(coordinates),
          affine(affine),
          batch(shape.batch),
          channels(shape.channels),
          points(1),
          voxels(1),
          normalized(shape.normalized),
          align_corners(shape.align_corners),
          padding(shape.padding) {
        for (int64_t n : shape.out) points *= n;
        for (int k = ND - 1; k >= 0; --k) {
            extent[k] = normalized ? 0 : shape.out[k];
            size[k] = static_cast<int32_t>(shape.in[k]);
            stride[k] = static_cast<int32_t>(voxels);
            voxels *= shape.in[k];
        }
    }

    int64_t blocks(int64_t points_per_block) const {
        return (points + points_per_block - 1) / points_per_block;
    }

    // i + u of a displacement's point.
    __device__ __forceinline__ void position(int64_t b, int64_t p, T (&at)[ND]) const {
        uint64_t rest = static_cast<uint64_t>(p);
#pragma unroll
        for (int k = ND - 1; k >= 0; --k) {
            const uint64_t n = static_cast<uint64_t>(extent[k]), above = k > 0 ? rest / n : 0;
            at[k] = static_cast<T>(static_cast<int64_t>(rest - above * n)) +
                    load(coordinates + (b * ND + k) * points + p);
            rest = above;
        }
    }

    // The voxel coordinates of a position.
    __device__ __forceinline__ void map(int64_t b, const T (&at)[ND], T (&x)[ND]) const {
#pragma unroll
        for (int k = 0; k < ND; ++k) x[k] = at[k];
        if (affine == nullptr) return;
        const T* matrix = affine + b * ND * (ND + 1);
#pragma unroll
        for (int k = 0; k < ND; ++k) {
            x[k] = load(matrix + k * (ND + 1) + ND);
#pragma unroll
            for (int j = 0; j < ND; ++j) x[k] += load(matrix + k * (ND + 1) + j) * at[j];
        }
    }

    // Voxel coordinates of a point before padding.
    __device__ __forceinline__ void locate(int64_t b, int64_t p, T (&x)[ND]) const {
        if (normalized) {
            const T* at = coordinates + (b * points + p) * ND;
#pragma unroll
            for (int k = 0; k < ND; ++k)
                x[k] = unnormalize(load(at + ND - 1 - k), static_cast<T>(size[k]), align_corners);
            return;
        }
        T at[ND];
        position(b, p, at);
        map(b, at, x);
    }

    // A direction in the caller's coordinates -> in voxel coordinates. `at` is laid out as they are.
    __device__ __forceinline__ void direction(const T* at, int64_t b, int64_t p, T (&u)[ND],
                                              T (&t)[ND]) const {
#pragma unroll
        for (int k = 0; k < ND; ++k) {
            u[k] = load(normalized ? at + p * ND + (ND - 1 - k) : at + k * points + p);
            t[k] = normalized ? u[k] * unnormalize_slope(static_cast<T>(size[k]), align_corners) : u[k];
        }
        if (affine == nullptr) return;
        const T* matrix = affine + b * ND * (ND + 1);
#pragma unroll
        for (int k = 0; k < ND; ++k) {
            t[k] = 0;
#pragma unroll
            for (int j = 0; j < ND; ++j) t[k] += load(matrix + k * (ND + 1) + j) * u[j];
        }
    }

    // Its adjoint: g with respect to voxel coordinates -> `to`, laid out as the caller's coordinates are.
    __device__ __forceinline__ void store_gradient(int64_t b, int64_t p, const T (&g)[ND], T* to) const {
#pragma unroll
        for (int j = 0; j < ND; ++j) {
            if (normalized) {
                to[p * ND + (ND - 1 - j)] = g[j] * unnormalize_slope(static_cast<T>(size[j]), align_corners);
                continue;
            }
            T sum = g[j];
            if (affine) {
                sum = 0;
#pragma unroll
                for (int k = 0; k < ND; ++k) sum += load(affine + (b * ND + k) * (ND + 1) + j) * g[k];
            }
            to[j * points + p] = sum;
        }
    }

    // Applies the padding to a coordinate of one axis; slope is d(result) / d(x). Every result converts to
    // int32 safely: with zeros, what lies outside is brought to a place just outside, NaN included.
    __device__ __forceinline__ T pad(int k, T x, T& slope) const {
        const T n = static_cast<T>(size[k]);
        slope = 1;
        if (padding == Padding::kZeros) {
            T ignored = 0;
            return clip(x, T(-2), n + 1, ignored);
        }
        if (padding == Padding::kReflection) x = reflect(x, n, align_corners, slope);
        return clip(x, T(0), n - 1, slope);
    }
};

// The 2^ND voxels around a point, numbered as in math/trilinear.h.
template <class T, int ND>
struct Cell {
    static constexpr int kCorners = 1 << ND;
    T weight[ND], slope[ND];  // slope: d(padded coordinate) / d(coordinate)
    int32_t offset[ND][2];    // along each axis, of the lower and the upper voxel; -1 outside the image

    __device__ __forceinline__ Cell(const Source<T, ND>& source, const T (&at)[ND]) {
#pragma unroll
        for (int k = 0; k < ND; ++k) {
            const int32_t size = source.size[k];
            const T x = source.pad(k, at[k], slope[k]);
            // A clipped coordinate on the last voxel belongs to the cell below it.
            const int32_t limit = source.padding == Padding::kZeros ? size + 1 : size - 2;
            int32_t low = static_cast<int32_t>(std::floor(x));
            low = low < limit ? low : limit;
            weight[k] = x - static_cast<T>(low);
#pragma unroll
            for (int side = 0; side < 2; ++side)
                offset[k][side] = low + side >= 0 && low + side < size ? (low + side) * source.stride[k] : -1;
        }
    }

    // A corner's offset in a channel of the image; -1 outside.
    __device__ __forceinline__ int32_t corner(int c) const {
        int32_t sum = 0, any = 0;
#pragma unroll
        for (int k = 0; k < ND; ++k) {
            sum += offset[k][c >> (ND - 1 - k) & 1];
            any |= offset[k][c >> (ND - 1 - k) & 1];
        }
        return any < 0 ? -1 : sum;
    }

    __device__ __forceinline__ T value(const T (&v)[kCorners]) const { return interpolate(v, weight); }

    // What padding makes of a derivative along every axis. A select rather than a product: a coordinate that
    // padding moved has none even where the image is not finite.
    __device__ __forceinline__ void apply_slopes(T (&g)[ND]) const {
#pragma unroll
        for (int k = 0; k < ND; ++k) g[k] = slope[k] != 0 ? g[k] * slope[k] : T(0);
    }
};

// The nearest voxel alone, halves to the even one as torch rounds.
template <class T, int ND>
struct Nearest {
    static constexpr int kCorners = 1;
    int32_t voxel = 0;

    __device__ __forceinline__ Nearest(const Source<T, ND>& source, const T (&at)[ND]) {
#pragma unroll
        for (int k = 0; k < ND; ++k) {
            T slope;
            const int32_t i = static_cast<int32_t>(std::rint(source.pad(k, at[k], slope)));
            voxel = voxel < 0 || i < 0 || i >= source.size[k] ? -1 : voxel + i * source.stride[k];
        }
    }
    __device__ __forceinline__ int32_t corner(int) const { return voxel; }
    __device__ __forceinline__ T value(const T (&v)[1]) const { return v[0]; }
};

// The values at the corners, 0 outside the image. S is the type in memory.
template <class S, class Place, class T, int N>
__device__ __forceinline__ void gather(const Place& place, const S* image, T (&v)[N]) {
#pragma unroll
    for (int c = 0; c < N; ++c) {
        const int32_t at = place.corner(c);
        v[c] = at < 0 ? T(0) : static_cast<T>(widen(load(image + at)));
    }
}

// Calls body with a value of the image's type in memory.
template <class T, class Body>
void with_storage(Storage storage, const Body& body) {
    if constexpr (std::is_same_v<T, float>) {
        if (storage == Storage::kBfloat16) return body(Bfloat16{});
        if (storage == Storage::kFloat16) return body(Float16{});
    }
    body(T{});
}

}  // namespace gpu
}  // namespace nr
