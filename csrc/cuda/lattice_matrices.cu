// The penalties on det(I + J) for Jacobians that are there already, as the jet of a field returns them. A
// block's matrices pass through shared memory, so that neighbouring threads read and write neighbouring
// numbers.
#include "cuda/lattice_tiles.h"
#include "math/jacobian.h"

namespace nr {
namespace gpu {

namespace {

constexpr int kRounds = 4;  // matrices of a thread

int64_t blocks_of(int64_t n) {
    constexpr int64_t each = kRounds * kLatticeThreads;
    return (n + each - 1) / each;
}

// Calls visit(J, exists) for every matrix of the thread; with store, what it leaves in J is written to `to`.
template <class T, int E, bool store, class Visit>
__device__ __forceinline__ void for_matrices(int64_t n, const T* jacobians, T* to, const Visit& visit) {
    __shared__ T block[kLatticeThreads * E];
    const int thread = static_cast<int>(threadIdx.x);
    for (int round = 0; round < kRounds; ++round) {
        const int64_t first = (int64_t{blockIdx.x} * kRounds + round) * kLatticeThreads;
        const int64_t left = n - first;
        const int count = left >= kLatticeThreads ? kLatticeThreads : left > 0 ? static_cast<int>(left) : 0;
        for (int i = thread; i < count * E; i += kLatticeThreads) block[i] = jacobians[first * E + i];
        __syncthreads();
        T j[E] = {};
        if (thread < count) {
#pragma unroll
            for (int e = 0; e < E; ++e) j[e] = block[thread * E + e];
            visit(j);
            if (store)
#pragma unroll
                for (int e = 0; e < E; ++e) block[thread * E + e] = j[e];
        }
        __syncthreads();
        if (!store) continue;
        for (int i = thread; i < count * E; i += kLatticeThreads) to[first * E + i] = block[i];
        __syncthreads();
    }
}

template <class T, int E>
__global__ void __launch_bounds__(kLatticeThreads)
    matrix_penalties(int64_t n, Penalty penalty, T threshold, const T* jacobians, LatticeSum* partial) {
    double sum = 0, folds = 0;
    for_matrices<T, E, false>(n, jacobians, nullptr, [&](T(&j)[E]) {
        const T det = map_determinant(j);
        sum += static_cast<double>(penalty_value(penalty, det, threshold));
        folds += det <= 0 ? 1.0 : 0.0;
    });
    leave_sum(sum, folds, partial);
}

template <class T, int E>
__global__ void __launch_bounds__(kLatticeThreads)
    matrix_gradient(int64_t n, Penalty penalty, T threshold, const T* upstream, const T* jacobians, T* grad) {
    const T factor = static_cast<T>(static_cast<double>(*upstream) / static_cast<double>(n));
    for_matrices<T, E, true>(n, jacobians, grad, [&](T(&j)[E]) {
        T cofactor[E];
        map_cofactor(j, cofactor);
        const T slope = factor * penalty_slope(penalty, map_determinant(j), threshold);
#pragma unroll
        for (int e = 0; e < E; ++e) j[e] = slope * cofactor[e];
    });
}

}  // namespace

size_t jacobian_penalty_scratch(int64_t n) { return static_cast<size_t>(blocks_of(n)) * sizeof(LatticeSum); }

template <class T>
void jacobian_penalty_forward(int ndim, int64_t n, Penalty penalty, double threshold, const T* jacobians,
                              T* value, int64_t* folds, void* scratch, Where where) {
    const DeviceGuard guard(where.device);
    const auto stream = static_cast<cudaStream_t>(where.stream);
    auto* partial = static_cast<LatticeSum*>(scratch);
    launch(ndim == 2 ? matrix_penalties<T, 4> : matrix_penalties<T, 9>, blocks_of(n), kLatticeThreads, 0,
           stream, n, penalty, static_cast<T>(threshold), jacobians, partial);
    launch(lattice_total<T>, 1, kLatticeThreads, 0, stream, partial, blocks_of(n), static_cast<double>(n),
           value, folds);
}

template <class T>
void jacobian_penalty_backward(int ndim, int64_t n, Penalty penalty, double threshold, const T* upstream,
                               const T* jacobians, T* grad_jacobians, Where where) {
    const DeviceGuard guard(where.device);
    launch(ndim == 2 ? matrix_gradient<T, 4> : matrix_gradient<T, 9>, blocks_of(n), kLatticeThreads, 0,
           static_cast<cudaStream_t>(where.stream), n, penalty, static_cast<T>(threshold), upstream,
           jacobians, grad_jacobians);
}

#define NR_INSTANTIATE(T)                                                                                   \
    template void jacobian_penalty_forward<T>(int, int64_t, Penalty, double, const T*, T*, int64_t*, void*, \
                                              Where);                                                       \
    template void jacobian_penalty_backward<T>(int, int64_t, Penalty, double, const T*, const T*, T*, Where);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace gpu
}  // namespace nr
