// A tile through the network, and where its memory lies: in shared memory if it fits there, else in scratch
// that stays in the cache, which a block uses for one tile after another.
#pragma once

#include <algorithm>

#include "cuda/field_inputs.h"
#include "cuda/field_plan.h"
#include "cuda/field_products.h"
#include "cuda/launch.h"

namespace nr {
namespace gpu {

struct TilePlan {
    int64_t tiles, blocks;
    size_t shared;                 // bytes of a block's shared memory
    size_t tile_bytes, sum_bytes;  // of a block's scratch; no tile_bytes: the tile is in shared memory
    bool sums_in_shared;           // while the block works; they end in scratch
    size_t sums;                   // numbers that a block adds up
    unsigned char *tile_room, *sum_room;

    size_t scratch() const { return static_cast<size_t>(blocks) * (tile_bytes + sum_bytes); }
    void use(void* scratch) {
        tile_room = static_cast<unsigned char*>(scratch);
        sum_room = tile_room + static_cast<size_t>(blocks) * tile_bytes;
    }
};

// features: of the tile; sums: numbers that a block adds up over its tiles.
inline TilePlan plan_tiles(int64_t n, int tangents, int features, int sums, size_t item, int device) {
    TilePlan plan{};
    const size_t limit = shared_memory_limit(device);
    const size_t stage = kStage * item, tile = size_t{1} * features * kPitch * item;
    plan.tiles = (n + tile_points(tangents) - 1) / tile_points(tangents);
    plan.sums = static_cast<size_t>(sums);
    plan.sum_bytes = (plan.sums + 3) / 4 * 4 * item;
    plan.tile_bytes = stage + tile <= limit ? 0 : tile;
    plan.shared = stage + (plan.tile_bytes ? 0 : tile);
    plan.sums_in_shared =
        plan.shared + plan.sum_bytes <= (limit - 1024) / 2;  // two blocks share a multiprocessor
    plan.shared += plan.sums_in_shared ? plan.sum_bytes : 0;
    int processors = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
    const size_t room = plan.tile_bytes + plan.sum_bytes;
    plan.blocks = plan.tiles;
    if (room > 0)
        plan.blocks = std::min(
            {plan.tiles, int64_t{2} * processors, std::max(int64_t{1}, int64_t(kMostScratch / room))});
    return plan;
}

template <class T>
__device__ __forceinline__ T* tile_memory(const TilePlan& plan, unsigned char* shared) {
    unsigned char* memory =
        plan.tile_bytes ? plan.tile_room + blockIdx.x * plan.tile_bytes : shared + kStage * sizeof(T);
    return reinterpret_cast<T*>(memory);
}

// As multiply, by the kind of product that the network asks for.
template <bool transposed, class T, class Finish>
__device__ __forceinline__ void multiply_for(const Network<T>& net, const FieldLayer<T>& layer, const T* from,
                                             T* stage, T* to, const Finish& finish) {
    const int depth = transposed ? layer.fan_out : layer.fan_in,
              columns = transposed ? layer.fan_in : layer.fan_out;
    if constexpr (sizeof(T) == sizeof(float))
        if (net.bfloat16 && depth > kNarrow) {  // narrow: plain coordinates, which must not lose bits
            multiply<Bfloat16Product, transposed>(from, depth, columns, layer.weight, stage, to, finish);
            return;
        }
    multiply<PlainProduct<T>, transposed>(from, depth, columns, layer.weight, stage, to, finish);
}

// The network's layers up to z of the output.
template <class T, int K>
__device__ __forceinline__ void run_layers(const Network<T>& net, T* stage, T* tile) {
    for (int l = 0; l < net.count; ++l) {
        const FieldLayer<T>& layer = net.layers[l];
        multiply_for<false>(
            net, layer, tile + layer.in * kPitch, stage, tile + layer.z * kPitch,
            [&](int c, int r, T sum) { return r < tile_points(K) ? sum + layer.bias[c] : sum; });
        __syncthreads();
        if (l + 1 < net.count) {
            activate<T, K>(layer, tile);
            __syncthreads();
        }
    }
}

}  // namespace gpu
}  // namespace nr
