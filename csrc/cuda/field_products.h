// Matrix products on a tile: a layer, its gradient to the input, its gradient to the weight. Plain
// multiply-adds; a thread holds 8 x 4 results, and weights pass through shared memory in pieces.
#pragma once

#include <cuda_runtime.h>

#include "cuda/field_network.h"
#include "cuda/field_products_bfloat16.h"

namespace nr {
namespace gpu {

// Up to so many columns, a thread computes single results: most of a piece would lie beside the matrix.
constexpr int kNarrow = 8;

template <class T>
struct alignas(16) Four {
    T v[4];
};

template <class T>
__device__ __forceinline__ Four<T> load_four(const T* at) {
    return *reinterpret_cast<const Four<T>*>(at);
}

// Stages weights w(k0 + k, c0 + c); beyond the matrix zeros. w(k, c) is weight[c * depth + k], or with
// transposed weight[k * columns + c].
template <class T, bool transposed>
__device__ __forceinline__ void load_stage(const T* weight, int depth, int columns, int k0, int c0,
                                           T* stage) {
    for (int i = threadIdx.x; i < kDepth * kColumns; i += kFieldThreads) {
        // neighbouring threads take neighbouring numbers of the weight, and different banks
        const int k = transposed ? i / kColumns : i % 8 + i / (8 * kColumns) * 8;
        const int c = transposed ? i % kColumns : i / 8 % kColumns;
        const bool inside = c0 + c < columns && k0 + k < depth;
        const int64_t at = transposed ? int64_t{k0 + k} * columns + c0 + c : int64_t{c0 + c} * depth + k0 + k;
        stage[k * kPitch + c] = inside ? weight[at] : T(0);
    }
}

// A thread's results of one piece of columns: 4 columns at 8 rows.
template <class T>
struct PlainProduct {
    T sum[4][8] = {};

    __device__ __forceinline__ static int row() { return static_cast<int>(threadIdx.x) / 16 * 8; }
    __device__ __forceinline__ static int column() { return static_cast<int>(threadIdx.x) % 16 * 4; }

    // A piece of weights, times the `left` features from `from` on, or as many as it has.
    __device__ __forceinline__ void add(const T* stage, const T* from, int left) {
        const int steps = left < kDepth ? left : kDepth;
#pragma unroll 2
        for (int k = 0; k < steps; ++k) {
            const Four<T> w = load_four(stage + k * kPitch + column());
            const Four<T> low = load_four(from + k * kPitch + row());
            const Four<T> high = load_four(from + k * kPitch + row() + 4);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    sum[i][j] += w.v[i] * low.v[j];
                    sum[i][j + 4] += w.v[i] * high.v[j];
                }
        }
    }

    // to[c][r] = finish(c, r, sum) for the first `columns` columns of the piece.
    template <class Finish>
    __device__ __forceinline__ void store(T* to, int columns, const Finish& finish) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int c = column() + i;
            if (c >= columns) continue;
#pragma unroll
            for (int half = 0; half < 8; half += 4) {
                Four<T> done;
#pragma unroll
                for (int j = 0; j < 4; ++j) done.v[j] = finish(c, row() + half + j, sum[i][half + j]);
                *reinterpret_cast<Four<T>*>(to + c * kPitch + row() + half) = done;
            }
        }
    }
};

// to[c][r] = finish(c, r, sum over k of from[k][r] w(k, c)) for c < columns, k < depth; w as in load_stage.
// Ends without a barrier.
template <class Product, bool transposed, class T, class Finish>
__device__ __forceinline__ void multiply(const T* from, int depth, int columns, const T* weight, T* stage,
                                         T* to, const Finish& finish) {
    if (columns <= kNarrow) {
        __syncthreads();
        for (int i = threadIdx.x; i < columns * kRows; i += kFieldThreads) {
            const int c = i / kRows, r = i % kRows;
            const T* w = transposed ? weight + c : weight + c * depth;
            T sum = 0;
            for (int k = 0; k < depth; ++k) sum += from[k * kPitch + r] * w[transposed ? k * columns : k];
            to[c * kPitch + r] = finish(c, r, sum);
        }
        return;
    }
    for (int c0 = 0; c0 < columns; c0 += kColumns) {
        Product product;
        for (int k0 = 0; k0 < depth; k0 += kDepth) {
            __syncthreads();
            load_stage<T, transposed>(weight, depth, columns, k0, c0, stage);
            __syncthreads();
            product.add(stage, from + k0 * kPitch, depth - k0);
        }
        product.store(to + c0 * kPitch, columns - c0,
                      [&](int c, int r, T sum) { return finish(c0 + c, r, sum); });
    }
}

// sums[c * fan_in + k] += sum over the first `rows` rows of upstream[c][r] in[k][r]. Ends without a barrier.
template <class T, int rows>
__device__ __forceinline__ void add_weight_gradient(bool bfloat16, const T* upstream, int fan_out,
                                                    const T* in, int fan_in, T* sums) {
    if (fan_in <= kNarrow || fan_out <= kNarrow) {
        for (int i = threadIdx.x; i < fan_in * fan_out; i += kFieldThreads) {
            const T* a = upstream + i / fan_in * kPitch;
            const T* b = in + i % fan_in * kPitch;
            T sum = 0;
#pragma unroll 4
            for (int r = 0; r < rows; ++r) sum += a[r] * b[r];
            sums[i] += sum;
        }
        return;
    }
    if constexpr (sizeof(T) == sizeof(float))
        if (bfloat16) {
            add_weight_gradient_bfloat16<rows>(upstream, fan_out, in, fan_in, sums);
            return;
        }
    constexpr int wide = 16 / sizeof(T);
    struct alignas(16) Load {
        T v[wide];
    };
    const int first_c = static_cast<int>(threadIdx.x) / 16, first_k = static_cast<int>(threadIdx.x) % 16;
    for (int c0 = first_c; c0 - first_c < fan_out; c0 += 64)
        for (int k0 = first_k; k0 - first_k < fan_in; k0 += 64) {
            int a[8], b[4];
#pragma unroll
            for (int i = 0; i < 8; ++i) a[i] = (c0 + 8 * i < fan_out ? c0 + 8 * i : fan_out - 1) * kPitch;
#pragma unroll
            for (int j = 0; j < 4; ++j) b[j] = (k0 + 16 * j < fan_in ? k0 + 16 * j : fan_in - 1) * kPitch;
            T sum[8][4] = {};
#pragma unroll 1
            for (int r = 0; r < rows; r += wide) {
                Load of_b[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) of_b[j] = *reinterpret_cast<const Load*>(in + b[j] + r);
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const Load of_a = *reinterpret_cast<const Load*>(upstream + a[i] + r);
#pragma unroll
                    for (int j = 0; j < 4; ++j)
#pragma unroll
                        for (int q = 0; q < wide; ++q)
                            if (rows % wide == 0 || r + q < rows) sum[i][j] += of_a.v[q] * of_b[j].v[q];
                }
            }
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int c = c0 + 8 * i, k = k0 + 16 * j;
                    if (c < fan_out && k < fan_in) sums[c * fan_in + k] += sum[i][j];
                }
        }
}

// sums[c] += sum of the points' rows, which alone a bias reaches.
template <class T, int points>
__device__ __forceinline__ void add_bias_gradient(const T* upstream, int fan_out, T* sums) {
    for (int c = threadIdx.x; c < fan_out; c += kFieldThreads) {
        T sum = 0;
#pragma unroll 4
        for (int p = 0; p < points; ++p) sum += upstream[c * kPitch + p];
        sums[c] += sum;
    }
}

}  // namespace gpu
}  // namespace nr
