// The penalties on det(I + J) for Jacobians that are there already, as the jet of a field returns them.
#include <algorithm>

#include "cpu/loops.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "math/jacobian.h"
#include "math/penalty.h"

namespace nr {

namespace {

constexpr int64_t kPart = 4096;  // matrices that share one partial sum, whatever the number of threads
constexpr int kBlock = 32;       // matrices that are turned to one array an entry and computed together

// Calls visit(block, first, n) for blocks of matrices from `begin` to `end`; the tail of a block holds zeros.
template <class T, int E, class Visit>
void for_blocks(const T* j, int64_t begin, int64_t end, Visit&& visit) {
    T block[E][kBlock];
    for (int64_t first = begin; first < end; first += kBlock) {
        const int n = static_cast<int>(std::min<int64_t>(kBlock, end - first));
        for (int e = 0; e < E; ++e) {
            for (int i = 0; i < n; ++i) block[e][i] = j[(first + i) * E + e];
            for (int i = n; i < kBlock; ++i) block[e][i] = 0;
        }
        visit(block, first, n);
    }
}

template <class T, int E>
PenaltyTotal forward(int64_t n, Penalty penalty, T threshold, const T* j, int threads) {
    std::vector<PenaltyTotal> partial((n + kPart - 1) / kPart);
    parallel_for(static_cast<int64_t>(partial.size()), threads, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t p = begin; p < end; ++p)
            for_blocks<T, E>(j, p * kPart, std::min(n, (p + 1) * kPart),
                             [&](const T(&block)[E][kBlock], int64_t, int m) {
                                 T det[kBlock];
                                 for (int i = 0; i < kBlock; ++i) {
                                     T one[E];
                                     for (int e = 0; e < E; ++e) one[e] = block[e][i];
                                     det[i] = map_determinant(one);
                                 }
                                 for (int i = 0; i < m; ++i) {
                                     partial[p].mean += penalty_value(penalty, det[i], threshold);
                                     partial[p].folds += det[i] <= 0;
                                 }
                             });
    });
    PenaltyTotal total;
    for (const PenaltyTotal& p : partial) {
        total.mean += p.mean;
        total.folds += p.folds;
    }
    total.mean /= static_cast<double>(n);
    return total;
}

template <class T, int E>
void backward(int64_t n, Penalty penalty, T threshold, T factor, const T* j, T* grad, int threads) {
    parallel_for(n, threads, kPart, [&](int64_t begin, int64_t end, int) {
        for_blocks<T, E>(j, begin, end, [&](const T(&block)[E][kBlock], int64_t first, int m) {
            T to[E][kBlock];
            for (int i = 0; i < kBlock; ++i) {
                T one[E], cofactor[E];
                for (int e = 0; e < E; ++e) one[e] = block[e][i];
                map_cofactor(one, cofactor);
                const T slope = factor * penalty_slope(penalty, map_determinant(one), threshold);
                for (int e = 0; e < E; ++e) to[e][i] = slope * cofactor[e];
            }
            for (int i = 0; i < m; ++i)
                for (int e = 0; e < E; ++e) grad[(first + i) * E + e] = to[e][i];
        });
    });
}

}  // namespace

template <class T>
PenaltyTotal jacobian_penalty_forward(int ndim, int64_t n, Penalty penalty, double threshold,
                                      const T* jacobians, int threads) {
    if (n == 0) return {};
    return (ndim == 2 ? forward<T, 4> : forward<T, 9>)(n, penalty, static_cast<T>(threshold), jacobians,
                                                       threads);
}

template <class T>
void jacobian_penalty_backward(int ndim, int64_t n, Penalty penalty, double threshold, double scale,
                               const T* jacobians, T* grad_jacobians, int threads) {
    if (n == 0) return;
    const T factor = static_cast<T>(scale / static_cast<double>(n));
    (ndim == 2 ? backward<T, 4> : backward<T, 9>)(n, penalty, static_cast<T>(threshold), factor, jacobians,
                                                  grad_jacobians, threads);
}

#define NR_INSTANTIATE(T)                                                                            \
    template PenaltyTotal jacobian_penalty_forward<T>(int, int64_t, Penalty, double, const T*, int); \
    template void jacobian_penalty_backward<T>(int, int64_t, Penalty, double, double, const T*, T*, int);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace nr
