// hash_encode and fourier_encode on their own; field.cpp fuses them with the layers.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/field_input.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace nr {

namespace {

constexpr int64_t kGrain = 4096;  // points a thread should have before a second one pays

}  // namespace

template <class T>
void hash_encode_forward(const GridShape& grid, int64_t n, const T* x, const T* table, T* encoded,
                         int threads) {
    const auto levels = grid_levels(grid);
    const int64_t width = static_cast<int64_t>(levels.size()) * grid.features;
    with_grid(grid.ndim, grid.features, false, [&](auto d, auto f, auto c) {
        parallel_for(n, threads, kGrain, [&](int64_t begin, int64_t end, int) {
            for (int64_t start = begin; start < end; start += kGridBlock) {
                const int count = static_cast<int>(std::min<int64_t>(kGridBlock, end - start));
                for (size_t l = 0; l < levels.size(); ++l)
                    grid_gather<T, d.value, f.value, c.value>(
                        levels[l], grid.features, x + start * grid.ndim, count, table,
                        encoded + start * width + l * grid.features, width, 0);
            }
        });
    });
}

template <class T>
void hash_encode_backward(const GridShape& grid, int64_t n, const T* x, const T* table, const T* grad_encoded,
                          T* grad_x, T* grad_table, int threads) {
    const auto levels = grid_levels(grid);
    const int64_t features = grid.features, width = static_cast<int64_t>(levels.size()) * features;
    with_grid(grid.ndim, grid.features, false, [&](auto d, auto f, auto c) {
        if (grad_table)
            parallel_jobs(static_cast<int64_t>(levels.size()), threads, [&](int64_t l) {
                std::vector<T> own(std::min(n, kGrain) * features);
                for (int64_t start = 0; start < n; start += kGrain) {
                    const int64_t count = std::min(kGrain, n - start);
                    for (int64_t p = 0; p < count; ++p) {
                        const T* from = grad_encoded + (start + p) * width + l * features;
                        std::copy(from, from + features, own.begin() + p * features);
                    }
                    grid_scatter<T, d.value, f.value, c.value>(levels[l], grid.features, 0, grid.features,
                                                               x + start * grid.ndim, count, own.data(),
                                                               grad_table);
                }
            });
        if (grad_x)
            parallel_for(n, threads, kGrain, [&](int64_t begin, int64_t end, int) {
                for (int64_t start = begin; start < end; start += kGridBlock) {
                    const int count = static_cast<int>(std::min<int64_t>(kGridBlock, end - start));
                    for (size_t l = 0; l < levels.size(); ++l)
                        grid_gradient_x<T, d.value, f.value, c.value>(
                            levels[l], grid.features, x + start * grid.ndim, count, table,
                            grad_encoded + start * width + l * features, width, 0,
                            grad_x + start * grid.ndim);
                }
            });
    });
}

template <class T>
void fourier_encode_forward(int ndim, int frequencies, double scale, int64_t n, const T* x, const T* b,
                            T* encoded, int threads) {
    const FourierBlock<T> fourier{ndim, frequencies, static_cast<T>(scale), b};
    parallel_for(n, threads, kGrain / 8, [&](int64_t begin, int64_t end, int) {
        fourier.encode(1, end - begin, x + begin * ndim, encoded + begin * 2 * frequencies, 2 * frequencies,
                       0);
    });
}

template <class T>
void fourier_encode_backward(int ndim, int frequencies, double scale, int64_t n, const T* x, const T* b,
                             const T* grad_encoded, T* grad_x, T* grad_b, int threads) {
    const int width = 2 * frequencies;
    const FourierBlock<T> fourier{ndim, frequencies, static_cast<T>(scale), b};
    // One partial sum of grad_b a part, added up in order.
    const int64_t size = static_cast<int64_t>(ndim) * frequencies;
    std::vector<T> partial(grad_b ? std::max(threads, 1) * size : 0);
    parallel_for(n, threads, kGrain / 8, [&](int64_t begin, int64_t end, int part) {
        std::vector<T> encoded(width);
        for (int64_t p = begin; p < end; ++p) {
            fourier.encode(1, 1, x + p * ndim, encoded.data(), width, 0);
            fourier.backward(1, 1, x + p * ndim, encoded.data(), grad_encoded + p * width, width, 0,
                             grad_x ? grad_x + p * ndim : nullptr,
                             grad_b ? partial.data() + part * size : nullptr);
        }
    });
    for (size_t i = 0; i < partial.size(); ++i) grad_b[i % size] += partial[i];
}

#define NR_INSTANTIATE(T)                                                                                  \
    template void hash_encode_forward<T>(const GridShape&, int64_t, const T*, const T*, T*, int);          \
    template void hash_encode_backward<T>(const GridShape&, int64_t, const T*, const T*, const T*, T*, T*, \
                                          int);                                                            \
    template void fourier_encode_forward<T>(int, int, double, int64_t, const T*, const T*, T*, int);       \
    template void fourier_encode_backward<T>(int, int, double, int64_t, const T*, const T*, const T*, T*,  \
                                             T*, int);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace nr
