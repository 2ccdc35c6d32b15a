// The matrix products of field_products.h on tensor cores: factors rounded to bfloat16 as they are read, sums
// in float32. A warp computes 16 rows of 64 columns; the tile keeps float32.
#pragma once

#include <cuda_runtime.h>

#include "cuda/field_network.h"
#include "cuda/tensor_core.h"

namespace nr {
namespace gpu {

// Lane 4 g + t of a warp, and the first of the warp's 16 rows.
struct MmaLane {
    int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
    int first = static_cast<int>(threadIdx.x) / 32 * 16;
    __device__ MmaLane() {}
};

// As PlainProduct.
struct Bfloat16Product {
    float sum[8][4] = {};  // rows 8 j .. 8 j + 7 of the tile

    __device__ __forceinline__ void add(const float* stage, const float* from, int left) {
        const MmaLane lane;
#pragma unroll 1
        for (int k0 = 0; k0 < kDepth && k0 < left; k0 += 16) {
            uint32_t a[4], b[2];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* w =
                    stage + (k0 + 2 * lane.t + i / 2 * 8) * kPitch + lane.first + lane.g + i % 2 * 8;
                a[i] = pack_bfloat16(w[0], w[kPitch]);
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int k = k0 + 2 * lane.t + 8 * i;
                    const float* v = from + k * kPitch + 8 * j + lane.g;
                    b[i] = pack_bfloat16(k < left ? v[0] : 0.0f, k + 1 < left ? v[kPitch] : 0.0f);
                }
                multiply_bfloat16(sum[j], a, b);
            }
        }
    }

    // Calls put(c, r, x, y) for the pairs of results that this lane holds: column c at rows r and r + 1.
    template <class Put>
    __device__ __forceinline__ void each(const Put& put) const {
        const MmaLane lane;
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i)
                put(lane.first + lane.g + 8 * i, 8 * j + 2 * lane.t, sum[j][2 * i], sum[j][2 * i + 1]);
    }

    template <class Finish>
    __device__ __forceinline__ void store(float* to, int columns, const Finish& finish) const {
        each([&](int c, int r, float x, float y) {
            if (c >= columns) return;
            *reinterpret_cast<float2*>(to + c * kPitch + r) =
                make_float2(finish(c, r, x), finish(c, r + 1, y));
        });
    }
};

// As add_weight_gradient.
template <int rows>
__device__ __forceinline__ void add_weight_gradient_bfloat16(const float* upstream, int fan_out,
                                                             const float* in, int fan_in, float* sums) {
    const MmaLane lane;
    const auto pair = [](const float* feature, int r) {
        return pack_bfloat16(r < rows ? feature[r] : 0.0f, r + 1 < rows ? feature[r + 1] : 0.0f);
    };
    for (int c0 = 0; c0 < fan_out; c0 += 64)
        for (int k0 = 0; k0 < fan_in; k0 += 64) {
            Bfloat16Product product;
#pragma unroll 1
            for (int r0 = 0; r0 < rows; r0 += 16) {
                uint32_t a[4], b[2];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int c = c0 + lane.first + lane.g + i % 2 * 8;
                    a[i] = pair(upstream + (c < fan_out ? c : fan_out - 1) * kPitch,
                                r0 + 2 * lane.t + i / 2 * 8);
                }
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    const int k = k0 + 8 * j + lane.g;
                    const float* feature = in + (k < fan_in ? k : fan_in - 1) * kPitch;
#pragma unroll
                    for (int i = 0; i < 2; ++i) b[i] = pair(feature, r0 + 2 * lane.t + 8 * i);
                    multiply_bfloat16(product.sum[j], a, b);
                }
            }
            product.each([&](int c, int k, float x, float y) {
                c += c0;
                k += k0;
                if (c >= fan_out) return;
                if (k < fan_in) sums[c * fan_in + k] += x;
                if (k + 1 < fan_in) sums[c * fan_in + k + 1] += y;
            });
        }
}

}  // namespace gpu
}  // namespace nr
