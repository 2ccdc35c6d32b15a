// Adam for feature tables, one thread a row: only rows with a gradient move, and their gradient is cleared.
#include "cuda/launch.h"
#include "cuda/refine.h"
#include "math/adam.h"

namespace nr {
namespace gpu {

namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    adam_rows(int64_t rows, int64_t features, double lr, double beta1, double beta2, double eps, T* table,
              T* grad, T* mean, T* square, int32_t* steps) {
    const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (row >= rows) return;
    const int64_t begin = row * features, end = begin + features;
    bool touched = false;
    for (int64_t i = begin; i < end; ++i) touched |= grad[i] != 0;  // NaN counts
    if (!touched) return;
    const int32_t count = steps[row] + 1;
    steps[row] = count;
    const AdamRule<T> rule(lr, beta1, beta2, eps, count);
    for (int64_t i = begin; i < end; ++i) {
        T m = mean[i], s = square[i], unused = 0;
        table[i] -= adam_step<false>(rule, grad[i], m, s, unused);
        mean[i] = m;
        square[i] = s;
        grad[i] = 0;
    }
}

}  // namespace

template <class T>
void table_adam(int64_t rows, int64_t features, double lr, double beta1, double beta2, double eps, T* table,
                T* grad, T* mean, T* square, int32_t* steps, Where where) {
    const DeviceGuard guard(where.device);
    launch(adam_rows<T>, (rows + kThreads - 1) / kThreads, kThreads, 0,
           static_cast<cudaStream_t>(where.stream), rows, features, lr, beta1, beta2, eps, table, grad, mean,
           square, steps);
}

template void table_adam<float>(int64_t, int64_t, double, double, double, double, float*, float*, float*,
                                float*, int32_t*, Where);
template void table_adam<double>(int64_t, int64_t, double, double, double, double, double*, double*, double*,
                                 double*, int32_t*, Where);

}  // namespace gpu
}  // namespace nr
