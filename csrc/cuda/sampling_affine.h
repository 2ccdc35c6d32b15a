// The affine's gradient: products of derivatives and points, summed in double, within a block and then over a
// batch item's blocks, always in the same order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/reduce.h"
#include "cuda/sampling_points.h"

namespace nr {
namespace gpu {

constexpr int64_t kAffinePoints = 4 * kSampleThreads;  // a block's share: its reduction costs as much as one

template <class T, int ND, bool wanted>
struct AffineSums {
    __device__ void add(const T (&)[ND], const T (&)[ND]) {}
    __device__ void add_points(const Source<T, ND>&, int64_t, int64_t, const T (&)[ND]) {}
    __device__ void store(double*) const {}
};

template <class T, int ND>
struct AffineSums<T, ND, true> {
    static constexpr int kEntries = ND * (ND + 1);
    double sum[ND][ND + 1] = {};

    // The products of g, with respect to voxel coordinates, and what the matrix is multiplied with.
    __device__ __forceinline__ void add(const T (&g)[ND], const T (&u)[ND]) {
#pragma unroll
        for (int k = 0; k < ND; ++k)
#pragma unroll
            for (int j = 0; j < ND; ++j) sum[k][j] += static_cast<double>(g[k]) * u[j];
    }

    // With (i + u, 1), the point itself.
    __device__ __forceinline__ void add_points(const Source<T, ND>& source, int64_t b, int64_t p,
                                               const T (&g)[ND]) {
        T at[ND];
        source.position(b, p, at);
        add(g, at);
#pragma unroll
        for (int k = 0; k < ND; ++k) sum[k][ND] += g[k];
    }

    // The block's sums; all its threads come here.
    __device__ __forceinline__ void store(double* partial) const {
#pragma unroll
        for (int e = 0; e < kEntries; ++e) {
            const double total = block_sum(sum[e / (ND + 1)][e % (ND + 1)]);
            if (threadIdx.x == 0) partial[int64_t{blockIdx.x} * kEntries + e] = total;
        }
    }
};

// One block an entry of one batch item.
template <class T>
__global__ void __launch_bounds__(kSampleThreads)
    finish_affine(const double* partial, int64_t blocks, int entries, T* grad_affine) {
    const int64_t b = blockIdx.x / entries, e = blockIdx.x - b * entries;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < blocks; i += kSampleThreads)
        sum += partial[(b * blocks + i) * entries + e];
    sum = block_sum(sum);
    if (threadIdx.x == 0) grad_affine[blockIdx.x] = static_cast<T>(sum);
}

}  // namespace gpu
}  // namespace nr
