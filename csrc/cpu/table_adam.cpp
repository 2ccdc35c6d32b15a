// Adam for feature tables: only rows with a gradient move, and their gradient is cleared in the same pass.
#include <cstdint>

#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "math/adam.h"

namespace nr {

template <class T>
void table_adam(int64_t rows, int64_t features, double lr, double beta1, double beta2, double eps, T* table,
                T* grad, T* mean, T* square, int32_t* steps, int threads) {
    constexpr int64_t kGrain = 1 << 13;
    parallel_for(rows, threads, kGrain, [&](int64_t begin, int64_t end, int) {
        // Neighbouring rows mostly share their count: the rule, two powers, is made again when it changes.
        int32_t count = 1;
        AdamRule<T> rule(lr, beta1, beta2, eps, count);
        for (int64_t row = begin; row < end; ++row) {
            T* g = grad + row * features;
            bool touched = false;
            for (int64_t f = 0; f < features; ++f) touched |= g[f] != 0;  // NaN counts
            if (!touched) continue;
            if (++steps[row] != count) {
                count = steps[row];
                rule = AdamRule<T>(lr, beta1, beta2, eps, count);
            }
            for (int64_t f = 0; f < features; ++f) {
                const int64_t i = row * features + f;
                T unused = 0;
                table[i] -= adam_step<false>(rule, g[f], mean[i], square[i], unused);
                g[f] = 0;
            }
        }
    });
}

template void table_adam<float>(int64_t, int64_t, double, double, double, double, float*, float*, float*,
                                float*, int32_t*, int);
template void table_adam<double>(int64_t, int64_t, double, double, double, double, double*, double*, double*,
                                 double*, int32_t*, int);

}  // namespace nr
