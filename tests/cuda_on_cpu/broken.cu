// Small kernels that are wrong in one way each, and one that is right: broken CASE ORDER prints what the
// kernel wrote, or says what the stand-in for CUDA has noticed and ends with status 3.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/launch.h"

namespace {

constexpr int kThreads = 64;

__global__ void mirror(bool barrier, int* out) {
    __shared__ int shared[kThreads];
    const int i = static_cast<int>(threadIdx.x);
    shared[i] = -1;
    __syncthreads();
    shared[i] = i + 1;
    if (barrier) __syncthreads();
    out[i] = shared[kThreads - 1 - i];
}

__global__ void right(int* out) {
    __shared__ int shared[kThreads];
    const int i = static_cast<int>(threadIdx.x);
    shared[i] = i + 1;
    __syncthreads();
    int sum = shared[kThreads - 1 - i];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    const unsigned votes = __ballot_sync(0xffffffffu, i % 2);
    const int up = __shfl_up_sync(0xffffffffu, i, 1), first = __shfl_sync(0xffffffffu, i, 0, 8);
    atomicAdd(out + i / 32, 1);
    out[2 + i] = sum + static_cast<int>(votes & 3u) + 100 * up + 10000 * first;
}

__global__ void partial_barrier(int* out) {
    if (threadIdx.x < 40) __syncthreads();
    out[threadIdx.x] = 1;
}

__global__ void two_barriers(int* out) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}

__global__ void partial_shuffle(int* out) {
    if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_down_sync(0xffffffffu, 1, 1);
}

__global__ void beyond_memory(int* out) { out[threadIdx.x + 3] = 1; }

__global__ void beyond_dynamic_shared(int* out) {
    NR_DYNAMIC_SHARED(bytes);
    int* shared = reinterpret_cast<int*>(bytes);
    shared[threadIdx.x + 1] = 1;
    __syncthreads();
    out[threadIdx.x] = shared[threadIdx.x + 1];
}

__global__ void beyond_static_shared(int* out) {
    __shared__ int shared[kThreads];
    shared[threadIdx.x + 1] = 1;
    __syncthreads();
    out[threadIdx.x] = shared[threadIdx.x + 1];
}

__global__ void unwritten_shared(double* out) {
    NR_DYNAMIC_SHARED(bytes);
    out[threadIdx.x] = reinterpret_cast<double*>(bytes)[threadIdx.x];
}

template <class T, class Kernel, class... A>
void run(const Kernel& kernel, size_t size, size_t shared, A... arguments) {
    std::vector<T> out(size);
    nr::gpu::launch(kernel, 1, kThreads, shared, nullptr, arguments..., out.data());
    for (const T& value : out) std::printf("%g ", static_cast<double>(value));
}

}  // namespace

int main(int count, char** arguments) {
    const std::string name = count > 1 ? arguments[1] : "";
    cuda_on_cpu::order() = count > 2 ? static_cast<unsigned>(std::atoi(arguments[2])) : 0;
    const size_t shared = kThreads * sizeof(int);
    try {
        if (name == "right") run<int>(right, kThreads + 2, 0);
        if (name == "barrier") run<int>(mirror, kThreads, 0, true);
        if (name == "missing_barrier") run<int>(mirror, kThreads, 0, false);
        if (name == "partial_barrier") run<int>(partial_barrier, kThreads, 0);
        if (name == "two_barriers") run<int>(two_barriers, kThreads, 0);
        if (name == "partial_shuffle") run<int>(partial_shuffle, kThreads, 0);
        if (name == "beyond_memory") run<int>(beyond_memory, kThreads, 0);
        if (name == "beyond_dynamic_shared") run<int>(beyond_dynamic_shared, kThreads, shared);
        if (name == "beyond_static_shared") run<int>(beyond_static_shared, kThreads, 0);
        if (name == "unwritten_shared") run<double>(unwritten_shared, kThreads, kThreads * sizeof(double));
        if (name == "too_much_shared") run<int>(beyond_dynamic_shared, kThreads, 300 * 1024);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "noticed: %s\n", error.what());
        return 3;
    }
    return 0;
}
