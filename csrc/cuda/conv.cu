// Two convolutions with 3 taps an axis and a ReLU between them. A block takes a tile of voxels and goes
// through the hidden channels group by group: the group stands in shared memory on the tile and a rim of one
// voxel, spread there from one channel of x after the other, and is gathered into the results at once. No
// hidden channel reaches device memory; the backward pass computes them again. A thread holds a column of
// planes, so that a weight read serves all of them. Sums over voxels go block by block, in one order.
#include <algorithm>

#include "cuda/conv_tile.h"
#include "cuda/launch.h"
#include "cuda/partials.h"

namespace nr {
namespace gpu {

namespace {

template <class T, int ND>
__global__ void __launch_bounds__(kConvThreads, 2)
    conv_forward(const Conv<T, ND> c, const T* x, const T* w1, const T* b1, const T* w2, const T* b2, T* y) {
    using C = Conv<T, ND>;
    NR_DYNAMIC_SHARED(memory);
    ConvShared<T, ND>& s = *reinterpret_cast<ConvShared<T, ND>*>(memory);
    for (int64_t number = blockIdx.x; number < c.tiles; number += gridDim.x) {
        const ConvTile tile(c, number);
        for (int out = 0; out < c.out; out += kResults) {
            T result[kResults][C::kZ];
#pragma unroll
            for (int r = 0; r < kResults; ++r)
#pragma unroll
                for (int k = 0; k < C::kZ; ++k) result[r][k] = out + r < c.out ? b2[out + r] : T(0);
            for (int first = 0; first < c.hidden; first += C::kGroup) {
                T sum[C::kGroup][C::kHiddenZ];
                hidden_group(c, tile, first, x, w1, b1, s, sum);
                gather_results(c, first, s.hidden, out, c.out, s, result, [&](int o, int h, int tap) {
                    return w2[(o * c.hidden + h) * C::kTaps + tap];
                });
            }
            write_results(c, tile, out, c.out, result, y);
        }
    }
}

// Where a block's sums of the parameters' gradients begin.
struct ConvSums {
    int w1, b1, w2, b2, size;

    explicit ConvSums(const ConvShape& s) {
        const auto taps = s.size.size() == 3 ? 27 : 9;
        w1 = 0;
        b1 = static_cast<int>(s.hidden * s.in * taps);
        w2 = b1 + static_cast<int>(s.hidden);
        b2 = w2 + static_cast<int>(s.out * s.hidden * taps);
        size = b2 + static_cast<int>(s.out);
    }
};

// grad_x, and a block's sums; either may be null.
template <class T, int ND>
__global__ void __launch_bounds__(kConvThreads, 2)
    conv_backward(const Conv<T, ND> c, const ConvSums sums, const T* grad_y, const T* x, const T* w1,
                  const T* b1, const T* w2, T* grad_x, T* partial) {
    using C = Conv<T, ND>;
    NR_DYNAMIC_SHARED(memory);
    ConvSharedBackward<T, ND>& s = *reinterpret_cast<ConvSharedBackward<T, ND>*>(memory);
    constexpr int last = C::kTaps - 1;  // adjoints turn the kernel round
    T* own = partial ? partial + int64_t{blockIdx.x} * sums.size : nullptr;
    for (int64_t number = blockIdx.x; number < c.tiles; number += gridDim.x) {
        const ConvTile tile(c, number);
        const auto add = [&](int at, T sum) { own[at] = number == blockIdx.x ? sum : own[at] + sum; };
        for (int in = 0; in < (grad_x ? c.in : 1); in += kResults) {
            const bool sums_now = own && in == 0;
            T result[kResults][C::kZ] = {};
            for (int first = 0; first < c.hidden; first += C::kGroup) {
                T sum[C::kGroup][C::kHiddenZ];
                hidden_group(c, tile, first, x, w1, b1, s, sum);
                const auto add_w2 = [&](int o) {
                    correlate<T, ND>(
                        s.hidden, s.image,
                        [&](int g, int tap, T total) {
                            const int h = first + g;
                            if (h < c.hidden)
                                add(sums.w2 + (o * c.hidden + h) * C::kTaps + last - tap, total);
                        },
                        [&](int g, T total) {
                            if (g == C::kGroup && first == 0) add(sums.b2 + o, total);
                        });
                };
                spread_channels(
                    c, tile, first, c.out, grad_y, s, sum,
                    [&](int h, int o, int tap) { return w2[(o * c.hidden + h) * C::kTaps + last - tap]; },
                    [&](int o) {
                        if (sums_now) add_w2(o);
                    });
                for_column(c, tile, first, [&](int g, int k, int at, bool) {
                    s.gradient[at] = s.hidden[at] > 0 ? sum[g][k] : T(0);
                });
                for (int i = 0; i < (sums_now ? c.in : 0); ++i) {
                    __syncthreads();
                    load_image(c, tile, x + (tile.item * c.in + i) * c.voxels, s.image);
                    __syncthreads();
                    correlate<T, ND>(
                        s.gradient, s.image,
                        [&](int g, int tap, T total) {
                            const int h = first + g;
                            if (h < c.hidden) add(sums.w1 + (h * c.in + i) * C::kTaps + tap, total);
                        },
                        [&](int g, T total) {
                            if (i == 0 && g < C::kGroup && first + g < c.hidden)
                                add(sums.b1 + first + g, total);
                        });
                }
                if (grad_x == nullptr) continue;
                gather_results(c, first, s.gradient, in, c.in, s, result, [&](int i, int h, int tap) {
                    return w1[(h * c.in + i) * C::kTaps + last - tap];
                });
            }
            if (grad_x) write_results(c, tile, in, c.in, result, grad_x);
        }
    }
}

int64_t blocks_for(int64_t tiles) { return std::min<int64_t>(tiles, kConvBlocks); }

template <class T, int ND>
void forward(const ConvShape& shape, const T* x, const T* w1, const T* b1, const T* w2, const T* b2, T* y,
             cudaStream_t stream) {
    const Conv<T, ND> c(shape);
    launch(conv_forward<T, ND>, blocks_for(c.tiles), kConvThreads, sizeof(ConvShared<T, ND>), stream, c, x,
           w1, b1, w2, b2, y);
}

template <class T, int ND>
void backward(const ConvShape& shape, const T* grad_y, const T* x, const T* w1, const T* b1, const T* w2,
              T* grad_x, const std::array<T*, 4>& grads, T* partial, cudaStream_t stream) {
    const Conv<T, ND> c(shape);
    const ConvSums sums(shape);
    const int64_t blocks = blocks_for(c.tiles);
    const bool wanted = std::any_of(grads.begin(), grads.end(), [](const T* g) { return g != nullptr; });
    launch(conv_backward<T, ND>, blocks, kConvThreads, sizeof(ConvSharedBackward<T, ND>), stream, c, sums,
           grad_y, x, w1, b1, w2, grad_x, wanted ? partial : nullptr);
    if (!wanted) return;
    Destinations<T> to;
    const int ends[] = {sums.b1, sums.w2, sums.b2, sums.size};
    for (int i = 0; i < 4; ++i) to.append(grads[i], ends[i] - to.size);
    launch(add_partials<T>, (sums.size + 255) / 256, 256, 0, stream, partial, blocks, sums.size, to);
}

}  // namespace

size_t conv_relu_conv_scratch(const ConvShape& shape, size_t item) {
    const int64_t tiles = shape.size.size() == 3 ? Conv<float, 3>(shape).tiles : Conv<float, 2>(shape).tiles;
    return static_cast<size_t>(blocks_for(tiles)) * ConvSums(shape).size * item;
}

template <class T>
void conv_relu_conv_forward(const ConvShape& shape, const T* x, const T* w1, const T* b1, const T* w2,
                            const T* b2, T* y, Where where) {
    const DeviceGuard guard(where.device);
    const auto run = shape.size.size() == 3 ? forward<T, 3> : forward<T, 2>;
    run(shape, x, w1, b1, w2, b2, y, static_cast<cudaStream_t>(where.stream));
}

template <class T>
void conv_relu_conv_backward(const ConvShape& shape, const T* grad_y, const T* x, const T* w1, const T* b1,
                             const T* w2, T* grad_x, const std::array<T*, 4>& grads, void* scratch,
                             Where where) {
    const DeviceGuard guard(where.device);
    const auto run = shape.size.size() == 3 ? backward<T, 3> : backward<T, 2>;
    run(shape, grad_y, x, w1, b1, w2, grad_x, grads, static_cast<T*>(scratch),
        static_cast<cudaStream_t>(where.stream));
}

template void conv_relu_conv_forward<float>(const ConvShape&, const float*, const float*, const float*,
                                            const float*, const float*, float*, Where);
template void conv_relu_conv_forward<double>(const ConvShape&, const double*, const double*, const double*,
                                             const double*, const double*, double*, Where);
template void conv_relu_conv_backward<float>(const ConvShape&, const float*, const float*, const float*,
                                             const float*, const float*, float*, const std::array<float*, 4>&,
                                             void*, Where);
template void conv_relu_conv_backward<double>(const ConvShape&, const double*, const double*, const double*,
                                              const double*, const double*, double*,
                                              const std::array<double*, 4>&, void*, Where);

}  // namespace gpu
}  // namespace nr
