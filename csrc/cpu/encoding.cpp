// hash_encode and fourier_encode on their own; field.cpp fuses them with the layers.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/fourier.h"
#include "cpu/grid.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace nr {

namespace {

constexpr int64_t kGrain = 4096;  // points a thread should have before a second one pays

template <class T, int N>
void hash_forward(const GridShape& grid, int64_t n, const T* x, const T* table, T* encoded, int threads) {
    const auto levels = grid_levels(grid);
    const int64_t width = static_cast<int64_t>(levels.size()) * grid.features;
    with_features(grid.features, [&](auto f) {
        parallel_for(n, threads, kGrain, [&](int64_t begin, int64_t end, int) {
            for (int64_t start = begin; start < end; start += kGridBlock) {
                const int count = static_cast<int>(std::min<int64_t>(kGridBlock, end - start));
                grid_gather<T, N, decltype(f)::value>(grid, levels, x + start * N, count, table,
                                                      encoded + start * width, width);
            }
        });
    });
}

template <class T, int N>
void hash_backward(const GridShape& grid, int64_t n, const T* x, const T* table, const T* grad, T* grad_x,
                   T* grad_table, int threads) {
    const auto levels = grid_levels(grid);
    const int64_t width = static_cast<int64_t>(levels.size()) * grid.features;
    with_features(grid.features, [&](auto f) {
        constexpr int F = decltype(f)::value;
        if (grad_table)
            parallel_for(static_cast<int64_t>(levels.size()), threads, 1,
                         [&](int64_t begin, int64_t end, int) {
                             for (int64_t l = begin; l < end; ++l)
                                 grid_scatter_level<T, N, F>(grid, levels[l], x, n, grad + l * grid.features,
                                                             width, grad_table);
                         });
        if (grad_x)
            parallel_for(n, threads, kGrain, [&](int64_t begin, int64_t end, int) {
                for (int64_t start = begin; start < end; start += kGridBlock) {
                    const int count = static_cast<int>(std::min<int64_t>(kGridBlock, end - start));
                    grid_gradient_x<T, N, F>(grid, levels, x + start * N, count, table, grad + start * width,
                                             width, grad_x + start * N);
                }
            });
    });
}

}  // namespace

template <class T>
void hash_encode_forward(const GridShape& grid, int64_t n, const T* x, const T* table, T* encoded,
                         int threads) {
    if (grid.ndim == 3)
        hash_forward<T, 3>(grid, n, x, table, encoded, threads);
    else
        hash_forward<T, 2>(grid, n, x, table, encoded, threads);
}

template <class T>
void hash_encode_backward(const GridShape& grid, int64_t n, const T* x, const T* table, const T* grad_encoded,
                          T* grad_x, T* grad_table, int threads) {
    if (grid.ndim == 3)
        hash_backward<T, 3>(grid, n, x, table, grad_encoded, grad_x, grad_table, threads);
    else
        hash_backward<T, 2>(grid, n, x, table, grad_encoded, grad_x, grad_table, threads);
}

template <class T>
void fourier_encode_forward(int ndim, int frequencies, double scale, int64_t n, const T* x, const T* b,
                            T* encoded, int threads) {
    parallel_for(n, threads, kGrain / 8, [&](int64_t begin, int64_t end, int) {
        fourier_block(ndim, frequencies, static_cast<T>(scale), end - begin, x + begin * ndim, b,
                      encoded + begin * 2 * frequencies, 2 * frequencies);
    });
}

template <class T>
void fourier_encode_backward(int ndim, int frequencies, double scale, int64_t n, const T* x, const T* b,
                             const T* grad_encoded, T* grad_x, T* grad_b, int threads) {
    const int width = 2 * frequencies;
    // One partial sum of grad_b a part, added up in order.
    std::vector<T> partial(grad_b ? static_cast<size_t>(std::max(threads, 1)) * ndim * frequencies : 0);
    parallel_for(n, threads, kGrain / 8, [&](int64_t begin, int64_t end, int part) {
        std::vector<T> encoded(width);
        T* own = grad_b ? partial.data() + static_cast<int64_t>(part) * ndim * frequencies : nullptr;
        for (int64_t p = begin; p < end; ++p) {
            fourier_block(ndim, frequencies, static_cast<T>(scale), 1, x + p * ndim, b, encoded.data(),
                          width);
            fourier_block_backward(ndim, frequencies, static_cast<T>(scale), 1, x + p * ndim, b,
                                   encoded.data(), width, grad_encoded + p * width, width,
                                   grad_x ? grad_x + p * ndim : nullptr, own);
        }
    });
    for (size_t i = 0; i < partial.size(); ++i)
        grad_b[i % (static_cast<size_t>(ndim) * frequencies)] += partial[i];
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
