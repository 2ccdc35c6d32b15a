// The gradient of the image: every point adds to the voxels around it. Upstream<T, ND> objects say what:
//   at(source, cell, b, p): what all channels of a point share
//   load(shared, source, cell, b, plane, p, a, q): what arrives at its value in a channel, and at the
//   derivatives with respect to voxel coordinates before padding.
#pragma once

#include <algorithm>
#include <cmath>

#include "cuda/fixed_point.h"
#include "cuda/sampling_points.h"

namespace nr {
namespace gpu {

template <class T, int ND>
struct Arriving {
    T a, q[ND];

    __device__ __forceinline__ double magnitude() const {
        double sum = std::fabs(static_cast<double>(a));
#pragma unroll
        for (int k = 0; k < ND; ++k) sum += std::fabs(static_cast<double>(q[k]));
        return sum;  // no corner gets more
    }
};

template <class T, int ND, bool slopes>
__device__ __forceinline__ void share(const Cell<T, ND>& cell, const Arriving<T, ND>& from, T (&v)[1 << ND]) {
    if constexpr (slopes)
        spread(from.a, from.q, cell.weight, v);
    else
        spread(from.a, cell.weight, v);
}
template <class T, int ND, bool slopes>
__device__ __forceinline__ void share(const Nearest<T, ND>&, const Arriving<T, ND>& from, T (&v)[1]) {
    v[0] = from.a;
}

template <class T, int ND, class Place, bool fixed, class Upstream>
__global__ void __launch_bounds__(kSampleThreads, kSampleBlocks<T>)
    scatter(const Source<T, ND> source, int64_t blocks, const Upstream upstream,
            typename Sums<T, fixed>::Type* to, double terms, const uint64_t* largest) {
    const int64_t b = blockIdx.x / blocks;
    const int64_t p = (blockIdx.x - b * blocks) * kSampleThreads + threadIdx.x;
    if (p >= source.points) return;
    const Sums<T, fixed> sums(terms, largest);
    T x[ND];
    source.locate(b, p, x);
    const Place place(source, x);
    const auto shared = upstream.at(source, place, b, p);
    for (int64_t plane = b * source.channels; plane < (b + 1) * source.channels; ++plane) {
        const Arriving<T, ND> arriving = upstream.load(shared, source, place, b, plane, p);
        T v[Place::kCorners];
        share<T, ND, Upstream::kSlopes>(place, arriving, v);
#pragma unroll
        for (int c = 0; c < Place::kCorners; ++c) {
            const int32_t at = place.corner(c);
            if (at >= 0) atomicAdd(to + plane * source.voxels + at, sums.of(v[c]));
        }
    }
}

template <class T, int ND, class Place, class Upstream>
__global__ void __launch_bounds__(kSampleThreads)
    find_largest(const Source<T, ND> source, int64_t blocks, const Upstream upstream, uint64_t* largest) {
    const int64_t b = blockIdx.x / blocks;
    const int64_t p = (blockIdx.x - b * blocks) * kSampleThreads + threadIdx.x;
    Largest found;
    if (p < source.points) {
        T x[ND];
        source.locate(b, p, x);
        const Place place(source, x);
        const auto shared = upstream.at(source, place, b, p);
        for (int64_t plane = b * source.channels; plane < (b + 1) * source.channels; ++plane)
            found.see(upstream.load(shared, source, place, b, plane, p).magnitude());
    }
    found.tell(largest);
}

template <class Place, class T, int ND, class Upstream>
void scatter_image(const Source<T, ND>& source, const Upstream& upstream, T* grad_image,
                   const FixedPoint& fixed_point, cudaStream_t stream) {
    const int64_t per_item = source.blocks(kSampleThreads), blocks = source.batch * per_item;
    if (fixed_point.sums == nullptr) {
        launch(scatter<T, ND, Place, false, Upstream>, blocks, kSampleThreads, 0, stream, source, per_item,
               upstream, grad_image, 0, nullptr);
        return;
    }
    auto* sums = reinterpret_cast<unsigned long long*>(fixed_point.sums);
    uint64_t* largest = fixed_point.largest;
    const double terms = static_cast<double>(source.points);
    const int64_t count = source.batch * source.channels * source.voxels;
    launch(clear_largest<uint64_t>, 1, 1, 0, stream, largest);
    launch(find_largest<T, ND, Place, Upstream>, blocks, kSampleThreads, 0, stream, source, per_item,
           upstream, largest);
    launch(scatter<T, ND, Place, true, Upstream>, blocks, kSampleThreads, 0, stream, source, per_item,
           upstream, sums, terms, largest);
    launch(add_fixed<T>, (count + 255) / 256, 256, 0, stream, count, terms, sums, largest, grad_image);
}

}  // namespace gpu
}  // namespace nr
