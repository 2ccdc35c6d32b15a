// Stands in for CUDA's header of this name when g++ compiles csrc/cuda/*.cu for the tests: memory is the
// host's, there is one device, and cuda/launch.h runs kernels through fibers.h.
#pragma once

#include "fibers.h"
#include "intrinsics.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static  // blocks run one at a time

#define threadIdx (::cuda_on_cpu::self().thread)
#define blockIdx (::cuda_on_cpu::machine().index)
#define blockDim (::cuda_on_cpu::machine().block)
#define gridDim (::cuda_on_cpu::machine().grid)
constexpr int warpSize = 32;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
using cudaStream_t = struct CUstream_st*;

inline const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-in for CUDA"; }
inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
    *value =
        which == cudaDevAttrMultiProcessorCount ? 1 : static_cast<int>(cuda_on_cpu::shared_memory_size());
    return cudaSuccess;
}
