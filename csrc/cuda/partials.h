// Sums that blocks have left one after another, added in the order of the blocks: the same bits every time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "cuda/launch.h"

namespace nr {
namespace gpu {

constexpr int kMaxDestinations = 40;

template <class T>
struct Destinations {
    struct Piece {
        T* to;
        int begin;  // of the block's sums
    };
    Piece pieces[kMaxDestinations];
    int count = 0, size = 0;

    // The next `length` sums of a block go to `to`, nowhere if it is null; returns where they begin.
    int append(T* to, int length) {
        if (count == kMaxDestinations) throw std::runtime_error("too many tensors for one sum");
        pieces[count++] = {to, size};
        size += length;
        return pieces[count - 1].begin;
    }
};

// Block b's sums begin at partial + b stride.
template <class T>
__global__ void __launch_bounds__(256)
    add_partials(const T* partial, int64_t blocks, int64_t stride, const Destinations<T> to) {
    const int i = static_cast<int>(blockIdx.x) * 256 + static_cast<int>(threadIdx.x);
    if (i >= to.size) return;
    int piece = 0;
    while (piece + 1 < to.count && to.pieces[piece + 1].begin <= i) ++piece;
    if (to.pieces[piece].to == nullptr) return;
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += partial[b * stride + i];
    to.pieces[piece].to[i - to.pieces[piece].begin] = static_cast<T>(sum);
}

}  // namespace gpu
}  // namespace nr
