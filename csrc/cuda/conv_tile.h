// What a block does with a tile of two convolutions: it loads channels, spreads them over hidden ones,
// gathers results from these, and correlates them with a channel for the gradients of weights.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>

#include "cuda/conv.h"
#include "cuda/launch.h"
#include "math/activation.h"
#include "math/config.h"

namespace nr {
namespace gpu {

constexpr int kConvThreads = 192;  // a column of the hidden tile each
constexpr int kConvBlocks = 512;   // that share the tiles: so many sums of weights' gradients are kept
constexpr int kConvY = 8, kConvX = 16;
constexpr int kHiddenY = kConvY + 2, kHiddenX = kConvX + 2;  // with the rim that the second convolution reads
constexpr int kImageY = kConvY + 4, kImageX = kConvX + 4;    // and the rim that those hidden voxels read
constexpr int kResults = 4;                                  // channels of the results held at a time
constexpr int kSlices = 16;                                  // threads that share a sum over a tile

static_assert(kHiddenY * kHiddenX <= kConvThreads, "a thread has one column");

// 2-D is one plane, whose taps reach no other.
template <class T, int ND>
struct Conv {
    static constexpr int kReach = ND == 3 ? 1 : 0;
    static constexpr int kDepth = 2 * kReach + 1, kTaps = 9 * kDepth;
    static constexpr int kZ = ND == 3 ? 8 : 1;
    static constexpr int kHiddenZ = kZ + 2 * kReach, kImageZ = kZ + 4 * kReach;
    static constexpr int kGroup = 16 / sizeof(T);  // hidden channels at a time
    static constexpr int kHidden = kHiddenZ * kHiddenY * kHiddenX;
    static constexpr int kImage = kImageZ * kImageY * kImageX;

    int planes, rows, width, in, hidden, out;
    int along_z, along_y, along_x;
    int64_t voxels, tiles;

    explicit Conv(const ConvShape& s)
        : in(static_cast<int>(s.in)), hidden(static_cast<int>(s.hidden)), out(static_cast<int>(s.out)) {
        voxels = 1;
        for (int64_t n : s.size) {
            if (n != 0 && voxels > INT32_MAX / n)
                throw std::runtime_error("conv_relu_conv: a channel has 2^31 or more voxels");
            voxels *= n;
        }
        planes = ND == 3 ? static_cast<int>(s.size[0]) : 1;
        rows = static_cast<int>(s.size[ND - 2]);
        width = static_cast<int>(s.size[ND - 1]);
        along_z = (planes + kZ - 1) / kZ;
        along_y = (rows + kConvY - 1) / kConvY;
        along_x = (width + kConvX - 1) / kConvX;
        tiles = s.batch * along_z * along_y * along_x;
    }
    NR_HD bool inside(int z, int y, int x) const {
        return z >= 0 && z < planes && y >= 0 && y < rows && x >= 0 && x < width;
    }
    NR_HD int64_t at(int z, int y, int x) const { return (int64_t{z} * rows + y) * width + x; }
};

// Where a tile begins.
struct ConvTile {
    int64_t item;
    int z, y, x;

    template <class T, int ND>
    __device__ ConvTile(const Conv<T, ND>& c, int64_t tile) {
        x = static_cast<int>(tile % c.along_x) * kConvX;
        tile /= c.along_x;
        y = static_cast<int>(tile % c.along_y) * kConvY;
        tile /= c.along_y;
        z = static_cast<int>(tile % c.along_z) * Conv<T, ND>::kZ;
        item = tile / c.along_z;
    }
};

// What a block shares.
template <class T, int ND>
struct ConvShared {
    using C = Conv<T, ND>;
    T hidden[C::kGroup * C::kHidden];
    T image[C::kImage];
    T spread[C::kTaps * C::kGroup];
    T gather[C::kTaps * C::kGroup * kResults];
};
template <class T, int ND>
struct ConvSharedBackward : ConvShared<T, ND> {
    T gradient[Conv<T, ND>::kGroup * Conv<T, ND>::kHidden];
};

// One channel of a volume on the tile and its wide rim; zeros outside.
template <class T, int ND>
__device__ __forceinline__ void load_image(const Conv<T, ND>& c, const ConvTile& tile, const T* channel,
                                           T* image) {
    using C = Conv<T, ND>;
    for (int i = threadIdx.x; i < C::kImage; i += kConvThreads) {
        const int x = tile.x - 2 + i % kImageX, y = tile.y - 2 + i / kImageX % kImageY;
        const int z = tile.z - 2 * C::kReach + i / (kImageX * kImageY);
        image[i] = c.inside(z, y, x) ? channel[c.at(z, y, x)] : T(0);
    }
}

// A thread's column of the hidden tile: sum[g][k] += the taps of hidden channel g, plane k, in the image.
template <class T, int ND>
__device__ __forceinline__ void spread(const T* image, const T* weights,
                                       T (&sum)[Conv<T, ND>::kGroup][Conv<T, ND>::kHiddenZ]) {
    using C = Conv<T, ND>;
    const int row = static_cast<int>(threadIdx.x) / kHiddenX,
              place = static_cast<int>(threadIdx.x) % kHiddenX;
    if (row >= kHiddenY) return;
#pragma unroll 1
    for (int side = 0; side < 9; ++side) {
        T v[C::kImageZ];
#pragma unroll
        for (int k = 0; k < C::kHiddenZ + 2 * C::kReach; ++k)
            v[k] = image[(k * kImageY + row + side / 3) * kImageX + place + side % 3];
#pragma unroll
        for (int dz = 0; dz < C::kDepth; ++dz)
#pragma unroll
            for (int g = 0; g < C::kGroup; ++g) {
                const T w = weights[(dz * 9 + side) * C::kGroup + g];
#pragma unroll
                for (int k = 0; k < C::kHiddenZ; ++k) sum[g][k] += w * v[k + dz];
            }
    }
}

// A thread's column of the tile: sum[r][k] += the taps of result r, plane k, in the group's hidden channels.
template <class T, int ND>
__device__ __forceinline__ void gather(const T* hidden, const T* weights,
                                       T (&sum)[kResults][Conv<T, ND>::kZ]) {
    using C = Conv<T, ND>;
    const int row = static_cast<int>(threadIdx.x) / kConvX, place = static_cast<int>(threadIdx.x) % kConvX;
    if (row >= kConvY) return;
#pragma unroll 1
    for (int at = 0; at < 9 * C::kGroup; ++at) {
        const int side = at / C::kGroup, g = at % C::kGroup;
        T v[C::kHiddenZ];
#pragma unroll
        for (int k = 0; k < C::kHiddenZ; ++k)
            v[k] = hidden[((g * C::kHiddenZ + k) * kHiddenY + row + side / 3) * kHiddenX + place + side % 3];
#pragma unroll
        for (int dz = 0; dz < C::kDepth; ++dz)
#pragma unroll
            for (int r = 0; r < kResults; ++r) {
                const T w = weights[((dz * 9 + side) * C::kGroup + g) * kResults + r];
#pragma unroll
                for (int k = 0; k < C::kZ; ++k) sum[r][k] += w * v[k + dz];
            }
    }
}

// Calls visit(g, k, place in the hidden tile, counts) for a thread's column; hidden channels that are none
// and voxels outside the volume do not count: the second convolution sees zeros there.
template <class T, int ND, class Visit>
__device__ __forceinline__ void for_column(const Conv<T, ND>& c, const ConvTile& tile, int first,
                                           const Visit& visit) {
    using C = Conv<T, ND>;
    const int row = static_cast<int>(threadIdx.x) / kHiddenX,
              place = static_cast<int>(threadIdx.x) % kHiddenX;
    if (row >= kHiddenY) return;
#pragma unroll
    for (int g = 0; g < C::kGroup; ++g)
#pragma unroll
        for (int k = 0; k < C::kHiddenZ; ++k)
            visit(g, k, ((g * C::kHiddenZ + k) * kHiddenY + row) * kHiddenX + place,
                  first + g < c.hidden &&
                      c.inside(tile.z - C::kReach + k, tile.y - 1 + row, tile.x - 1 + place));
}

// Writes the results from `first` on, of `count` channels.
template <class T, int ND>
__device__ __forceinline__ void write_results(const Conv<T, ND>& c, const ConvTile& tile, int first,
                                              int count, const T (&sum)[kResults][Conv<T, ND>::kZ],
                                              T* results) {
    const int y = tile.y + static_cast<int>(threadIdx.x) / kConvX,
              x = tile.x + static_cast<int>(threadIdx.x) % kConvX;
    if (static_cast<int>(threadIdx.x) >= kConvY * kConvX) return;
#pragma unroll
    for (int r = 0; r < kResults; ++r)
#pragma unroll
        for (int k = 0; k < Conv<T, ND>::kZ; ++k)
            if (first + r < count && c.inside(tile.z + k, y, x))
                results[(tile.item * count + first + r) * c.voxels + c.at(tile.z + k, y, x)] = sum[r][k];
}

// Goes through the channels of a volume: each is loaded, spread over the hidden tile into sum with
// weight(hidden channel, channel, tap), and then(channel) is called while it stands in shared memory.
template <class T, int ND, class Weight, class Then>
__device__ __forceinline__ void spread_channels(const Conv<T, ND>& c, const ConvTile& tile, int first,
                                                int count, const T* volume, ConvShared<T, ND>& s,
                                                T (&sum)[Conv<T, ND>::kGroup][Conv<T, ND>::kHiddenZ],
                                                const Weight& weight, const Then& then) {
    using C = Conv<T, ND>;
    for (int channel = 0; channel < count; ++channel) {
        __syncthreads();
        load_image(c, tile, volume + (tile.item * count + channel) * c.voxels, s.image);
        for (int i = threadIdx.x; i < C::kTaps * C::kGroup; i += kConvThreads) {
            const int h = first + i % C::kGroup;
            s.spread[i] = h < c.hidden ? weight(h, channel, i / C::kGroup) : T(0);
        }
        __syncthreads();
        spread<T, ND>(s.image, s.spread, sum);
        then(channel);
    }
}

// The group of hidden channels from `first` on, behind the ReLU, in s.hidden; sum is left with zeros.
template <class T, int ND>
__device__ __forceinline__ void hidden_group(const Conv<T, ND>& c, const ConvTile& tile, int first,
                                             const T* x, const T* w1, const T* b1, ConvShared<T, ND>& s,
                                             T (&sum)[Conv<T, ND>::kGroup][Conv<T, ND>::kHiddenZ]) {
    using C = Conv<T, ND>;
#pragma unroll
    for (int g = 0; g < C::kGroup; ++g)
#pragma unroll
        for (int k = 0; k < C::kHiddenZ; ++k) sum[g][k] = first + g < c.hidden ? b1[first + g] : T(0);
    spread_channels(
        c, tile, first, c.in, x, s, sum,
        [&](int h, int i, int tap) { return w1[(h * c.in + i) * C::kTaps + tap]; }, [](int) {});
    for_column(c, tile, first, [&](int g, int k, int at, bool counts) {
        s.hidden[at] = counts ? relu(sum[g][k]).value : T(0);
        sum[g][k] = 0;
    });
}

// The results from `begin` on, of `count`, out of a hidden tile, with weight(result, hidden channel, tap).
template <class T, int ND, class Weight>
__device__ __forceinline__ void gather_results(const Conv<T, ND>& c, int first, const T* hidden, int begin,
                                               int count, ConvShared<T, ND>& s,
                                               T (&result)[kResults][Conv<T, ND>::kZ], const Weight& weight) {
    using C = Conv<T, ND>;
    for (int i = threadIdx.x; i < C::kTaps * C::kGroup * kResults; i += kConvThreads) {
        const int r = begin + i % kResults, h = first + i / kResults % C::kGroup;
        s.gather[i] = r < count && h < c.hidden ? weight(r, h, i / (kResults * C::kGroup)) : T(0);
    }
    __syncthreads();
    gather<T, ND>(hidden, s.gather, result);
}

// Correlations of the group's hidden tile with an image: calls leave(g, tap, sum) once for each, and
// once(g, sum) with the sums of the hidden tile, once(kGroup, sum) with the image's.
template <class T, int ND, class Leave, class Once>
__device__ __forceinline__ void correlate(const T* hidden, const T* image, const Leave& leave,
                                          const Once& once) {
    using C = Conv<T, ND>;
    const int side = static_cast<int>(threadIdx.x) / kSlices, slice = static_cast<int>(threadIdx.x) % kSlices;
    const int dz = side / 3, dy = side % 3;
    T sum[C::kGroup][3] = {}, own[C::kGroup] = {}, other = 0;
    if (dz < C::kDepth)
#pragma unroll 1
        for (int line = slice; line < C::kZ * kConvY; line += kSlices) {
            const int z = line / kConvY, y = line % kConvY;
            const T* h = hidden + ((z + C::kReach) * kHiddenY + y + 1) * kHiddenX + 1;
            const T* v = image + ((z + C::kReach + dz) * kImageY + y + 1 + dy) * kImageX + 1;
            T before = v[0], here = v[1];
#pragma unroll 4
            for (int x = 0; x < kConvX; ++x) {
                const T after = v[x + 2];
                other += here;
#pragma unroll
                for (int g = 0; g < C::kGroup; ++g) {
                    const T factor = h[g * C::kHidden + x];
                    own[g] += factor;
                    sum[g][0] += factor * before;
                    sum[g][1] += factor * here;
                    sum[g][2] += factor * after;
                }
                before = here;
                here = after;
            }
        }
    const auto over_slices = [](T value) {  // every thread of the block comes here
#pragma unroll
        for (int offset = kSlices / 2; offset > 0; offset /= 2)
            value += __shfl_down_sync(0xffffffffu, value, offset, kSlices);
        return value;
    };
    const bool tells = slice == 0 && dz < C::kDepth, centre = tells && side == C::kReach * 3 + 1;
#pragma unroll
    for (int g = 0; g < C::kGroup; ++g) {
#pragma unroll
        for (int dx = 0; dx < 3; ++dx) {
            const T total = over_slices(sum[g][dx]);
            if (tells) leave(g, side * 3 + dx, total);
        }
        const T total = over_slices(own[g]);
        if (centre) once(g, total);
    }
    other = over_slices(other);
    if (centre) once(C::kGroup, other);
}

}  // namespace gpu
}  // namespace nr
