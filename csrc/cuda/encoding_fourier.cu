// Fourier features on their own: a thread a feature of a point; the gradient to x is one warp's sum, that to
// the matrix is summed by every block for its points and then over the blocks, in order.
#include <algorithm>

#include "cuda/encoding.h"
#include "cuda/fourier.h"
#include "cuda/launch.h"
#include "cuda/partials.h"

namespace nr {
namespace gpu {

namespace {

constexpr int kThreads = 128;
constexpr int kBlockPoints = 64;  // at least, of a block of the matrix's gradient
constexpr int64_t kMostBlocks = 512;

int64_t blocks_for(int64_t count, int64_t each) { return (count + each - 1) / each; }
int64_t matrix_blocks(int64_t n) { return std::min(blocks_for(n, kBlockPoints), kMostBlocks); }

template <class T>
__device__ __forceinline__ T phase_of(const FourierShape& shape, const T* x, const T* matrix, int f) {
    T phase = 0;
    for (int d = 0; d < shape.ndim; ++d) phase += x[d] * matrix[d * shape.frequencies + f];
    return static_cast<T>(shape.scale) * phase;
}

// scale times the gradient to the phase; grad: a point's
template <class T>
__device__ __forceinline__ T phase_gradient(const FourierShape& shape, const T* x, const T* matrix,
                                            const T* grad, int f) {
    T s, c;
    phase_sin_cos(phase_of(shape, x, matrix, f), s, c);
    return static_cast<T>(shape.scale) * (c * grad[f] - s * grad[shape.frequencies + f]);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    fourier_forward(const FourierShape shape, int64_t n, const T* x, const T* matrix, T* encoded) {
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= n * shape.frequencies) return;
    const int64_t p = i / shape.frequencies;
    const int f = static_cast<int>(i - p * shape.frequencies);
    T s, c;
    phase_sin_cos(phase_of(shape, x + p * shape.ndim, matrix, f), s, c);
    encoded[2 * p * shape.frequencies + f] = s;
    encoded[(2 * p + 1) * shape.frequencies + f] = c;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    fourier_gradient_x(const FourierShape shape, int64_t n, const T* x, const T* matrix, const T* grad,
                       T* grad_x) {
    const int64_t p = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
    const int lane = threadIdx.x % 32;
    T sum[3] = {};
    if (p < n)
        for (int f = lane; f < shape.frequencies; f += 32) {
            const T g =
                phase_gradient(shape, x + p * shape.ndim, matrix, grad + 2 * p * shape.frequencies, f);
#pragma unroll
            for (int d = 0; d < 3; ++d)
                if (d < shape.ndim) sum[d] += g * matrix[d * shape.frequencies + f];
        }
#pragma unroll
    for (int d = 0; d < 3; ++d) {
        for (int offset = 16; offset > 0; offset /= 2)
            sum[d] += __shfl_down_sync(0xffffffffu, sum[d], offset);
        if (lane == 0 && p < n && d < shape.ndim) grad_x[p * shape.ndim + d] = sum[d];
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    fourier_gradient_matrix(const FourierShape shape, int64_t n, const T* x, const T* matrix, const T* grad,
                            T* partial) {
    T* own = partial + int64_t{blockIdx.x} * shape.ndim * shape.frequencies;
    for (int f = threadIdx.x; f < shape.frequencies; f += kThreads) {
        T sum[3] = {};
        for (int64_t p = blockIdx.x; p < n; p += gridDim.x) {
            const T g =
                phase_gradient(shape, x + p * shape.ndim, matrix, grad + 2 * p * shape.frequencies, f);
#pragma unroll
            for (int d = 0; d < 3; ++d)
                if (d < shape.ndim) sum[d] += g * x[p * shape.ndim + d];
        }
#pragma unroll
        for (int d = 0; d < 3; ++d)
            if (d < shape.ndim) own[d * shape.frequencies + f] = sum[d];
    }
}

}  // namespace

template <class T>
void fourier_encode_forward(const FourierShape& shape, int64_t n, const T* x, const T* matrix, T* encoded,
                            Where where) {
    const DeviceGuard guard(where.device);
    launch(fourier_forward<T>, blocks_for(n * shape.frequencies, kThreads), kThreads, 0,
           static_cast<cudaStream_t>(where.stream), shape, n, x, matrix, encoded);
}

size_t fourier_encode_scratch(const FourierShape& shape, int64_t n, size_t item) {
    return static_cast<size_t>(matrix_blocks(n)) * shape.ndim * shape.frequencies * item;
}

template <class T>
void fourier_encode_backward(const FourierShape& shape, int64_t n, const T* x, const T* matrix, const T* grad,
                             T* grad_x, T* grad_matrix, void* scratch, Where where) {
    const DeviceGuard guard(where.device);
    const auto stream = static_cast<cudaStream_t>(where.stream);
    if (grad_x)
        launch(fourier_gradient_x<T>, blocks_for(n, kThreads / 32), kThreads, 0, stream, shape, n, x, matrix,
               grad, grad_x);
    if (!grad_matrix) return;
    auto* partial = static_cast<T*>(scratch);
    const int64_t blocks = matrix_blocks(n);
    launch(fourier_gradient_matrix<T>, blocks, kThreads, 0, stream, shape, n, x, matrix, grad, partial);
    Destinations<T> to;
    to.append(grad_matrix, shape.ndim * shape.frequencies);
    launch(add_partials<T>, blocks_for(to.size, 256), 256, 0, stream, partial, blocks, to.size, to);
}

#define NR_INSTANTIATE(T)                                                                                    \
    template void fourier_encode_forward<T>(const FourierShape&, int64_t, const T*, const T*, T*, Where);    \
    template void fourier_encode_backward<T>(const FourierShape&, int64_t, const T*, const T*, const T*, T*, \
                                             T*, void*, Where);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace gpu
}  // namespace nr
