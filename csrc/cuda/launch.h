// The one way to launch a kernel: on a given stream of a given device, without waiting for anything, so that
// a CUDA graph can capture it. Compiled by g++ against tests/cuda_on_cpu the same call runs the kernel there.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace nr {
namespace gpu {

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess)
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// The device is current as long as the guard lives.
class DeviceGuard {
public:
    explicit DeviceGuard(int device) : device_(device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (before_ != device_) check(cudaSetDevice(device_), "cudaSetDevice");
    }
    ~DeviceGuard() {
        if (before_ != device_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    int before_ = 0, device_;
};

// Bytes of dynamic shared memory that a block may have; the reserve is for what kernels declare statically.
inline size_t shared_memory_limit(int device) {
    constexpr size_t reserve = 1024;
    int bytes = 0;
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "cudaDeviceGetAttribute");
    return static_cast<size_t>(bytes) - reserve;
}

template <class T>
struct AsDeclared {  // keeps arguments out of the deduction: they convert to the kernel's own types
    using type = T;
};

template <class... P>
void launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared, cudaStream_t stream,
            typename AsDeclared<P>::type... arguments) {
    if (blocks == 0) return;
    if (blocks > INT32_MAX) throw std::runtime_error("a kernel needs more blocks than a launch may have");
    const dim3 grid(static_cast<unsigned>(blocks)), block(static_cast<unsigned>(threads));
#if defined(__CUDACC__)
    const void* entry = reinterpret_cast<const void*>(kernel);
    if (shared > 48 * 1024)  // more has to be asked for
        check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared)),
              "cudaFuncSetAttribute");
    void* addresses[] = {static_cast<void*>(&arguments)...};
    check(cudaLaunchKernel(entry, grid, block, addresses, shared, stream), "cudaLaunchKernel");
#else
    (void)stream;
    cuda_on_cpu::run(grid, block, shared, [&] { kernel(arguments...); });
#endif
}

}  // namespace gpu
}  // namespace nr

// A block's dynamic shared memory, aligned for any scalar.
#if defined(__CUDACC__)
#define NR_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#define NR_DYNAMIC_SHARED(name) unsigned char* const name = cuda_on_cpu::dynamic_shared()
#endif
