// Sums over a block, always in the same order.
#pragma once

#include <cuda_runtime.h>

namespace nr {
namespace gpu {

// The block's sum, in thread 0. Every thread of the block calls this; the block is a multiple of 32 threads.
__device__ inline double block_sum(double value) {
    __shared__ double of_warp[32];
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x == 0)
        for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) value += of_warp[warp];
    __syncthreads();  // the next call writes to of_warp
    return value;
}

}  // namespace gpu
}  // namespace nr
