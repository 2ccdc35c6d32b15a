// The first features of a tile: the encoding of its points, latents and the latent volume; and the way back.
#pragma once

#include <cuda_runtime.h>

#include "cuda/field_layers.h"
#include "cuda/fourier.h"
#include "cuda/grid.h"

namespace nr {
namespace gpu {

// A tile's points: the first of them, and how many are left from there.
template <class T>
struct TilePoints {
    const T* x;
    int64_t first, left;

    __device__ __forceinline__ bool has(int p) const { return p < left; }
    // Component d of point p; what lies beyond the last point is 0 and counts nowhere.
    __device__ __forceinline__ T at(const Network<T>& net, int p, int d) const {
        return p < left ? x[(first + p) * net.ndim + d] : T(0);
    }
};

// Level `level` at point p into the features from `to` on.
template <class T, int K, int N>
__device__ __forceinline__ void encode_level(const Network<T>& net, const GridLayout& layout,
                                             const GridLevel& level, const T* table,
                                             const TilePoints<T>& points, int p, T* to) {
    T x[N];
#pragma unroll
    for (int d = 0; d < N; ++d) x[d] = points.at(net, p, d);
    gather_level<T, N, K + 1>(layout, level, table, x, [&](int f, int j, T value) {
        to[f * kPitch + j * tile_points(K) + p] = value;
    });
}

template <class T, int K>
__device__ __forceinline__ void encode_level(const Network<T>& net, const GridLayout& layout,
                                             const GridLevel& level, const T* table,
                                             const TilePoints<T>& points, int p, T* to) {
    if constexpr (K > 0)
        encode_level<T, K, K>(net, layout, level, table, points, p, to);
    else if (net.ndim == 3)
        encode_level<T, 0, 3>(net, layout, level, table, points, p, to);
    else
        encode_level<T, 0, 2>(net, layout, level, table, points, p, to);
}

// Phase of feature f with its tangents.
template <class T, int K>
__device__ __forceinline__ Jet<T, K> fourier_phase(const Network<T>& net, const TilePoints<T>& points, int f,
                                                   int p) {
    Jet<T, K> phase;
    phase.value = 0;
    for (int d = 0; d < net.ndim; ++d)
        phase.value += points.at(net, p, d) * net.table[d * net.frequencies + f];
    phase.value *= net.scale;
#pragma unroll
    for (int k = 0; k < K; ++k) phase.tangents[k] = net.scale * net.table[k * net.frequencies + f];
    return phase;
}

template <class T, int K>
__device__ __forceinline__ void load_inputs(const Network<T>& net, const Grid& grid,
                                            const TilePoints<T>& points, T* tile) {
    constexpr int P = tile_points(K);
    T* input = tile + net.input * kPitch;
    const bool fourier = net.encoding == Encoding::kFourier;
    const int plain = net.encoding == Encoding::kNone || (fourier && net.raw) ? net.ndim : 0;
    for_each_point<P>(plain, [&](int c, int p) {
        Jet<T, K> x;
        x.value = points.at(net, p, c);
#pragma unroll
        for (int k = 0; k < K; ++k) x.tangents[k] = k == c ? T(1) : T(0);
        x.store(input + c * kPitch, p);
    });
    if (fourier)
        for_each_point<P>(net.frequencies, [&](int f, int p) {
            const Jet<T, K> phase = fourier_phase<T, K>(net, points, f, p);
            T s, c;
            phase_sin_cos(phase.value, s, c);
            phase.through({s, c, -s}).store(input + (plain + f) * kPitch, p);
            phase.through({c, -s, -c}).store(input + (plain + net.frequencies + f) * kPitch, p);
        });
    if (net.encoding == Encoding::kGrid)
        for_each_point<P>(grid.count, [&](int level, int p) {
            encode_level<T, K>(net, grid, grid.levels[level], net.table, points, p,
                               input + level * grid.features * kPitch);
        });
    for_each_point<P>(net.latent_width, [&](int c, int p) {
        Jet<T, K> latent = {};
        if (points.has(p)) latent.value = net.latent[(points.first + p) * net.latent_stride + c];
        latent.store(input + (net.encoded + c) * kPitch, p);
    });
    if (net.volume)
        for_each_point<P>(1, [&](int, int p) {
            encode_level<T, K>(net, net.volume_layout, net.volume_level, net.volume, points, p,
                               input + (net.encoded + net.latent_width) * kPitch);
        });
}

// Where gradients of a tile's inputs go; null where not wanted.
template <class T>
struct InputGradients {
    T* x;
    T* grid;
    T* volume;
    int64_t rows_of, begin;  // of grid and volume: numbers in a row, and the point that the first belongs to
    T* latent;               // one a point
    T* latent_sum;           // of the block, for one latent for all
    T* matrix_sum;           // of the block
};

// The features from `from` on to rows of their own.
template <class T, int K>
__device__ __forceinline__ void store_feature_gradients(const T* from, int features,
                                                        const TilePoints<T>& points,
                                                        const InputGradients<T>& to, T* rows) {
    for_each_point<kRows>(features, [&](int f, int r) {
        const int j = r / tile_points(K), p = r % tile_points(K);
        if (j <= K && points.has(p))
            rows[(f * (K + 1) + j) * to.rows_of + points.first - to.begin + p] = from[f * kPitch + r];
    });
}

// Turns the gradients of sines and cosines into those of the phases, in place of the sines'.
template <class T, int K>
__device__ __forceinline__ void fourier_back(const Network<T>& net, const TilePoints<T>& points, T* sines) {
    for_each_point<tile_points(K)>(net.frequencies, [&](int f, int p) {
        const Jet<T, K> phase = fourier_phase<T, K>(net, points, f, p);
        T s, c;
        phase_sin_cos(phase.value, s, c);
        Jet<T, K> to_sine, to_cosine;
        to_sine.load(sines + f * kPitch, p);
        to_cosine.load(sines + (net.frequencies + f) * kPitch, p);
        Jet<T, K> to_phase = phase.back({s, c, -s}, to_sine);
        to_phase.add(phase.back({c, -s, -c}, to_cosine));
        to_phase.store(sines + f * kPitch, p);
    });
}

template <class T, int K>
__device__ __forceinline__ void inputs_back(const Network<T>& net, const TilePoints<T>& points,
                                            const InputGradients<T>& to, const T* grad_y, T* tile) {
    constexpr int P = tile_points(K);
    T* gradient = tile + net.input_gradient * kPitch;
    const bool fourier = net.encoding == Encoding::kFourier;
    const int plain = net.encoding == Encoding::kNone || (fourier && net.raw) ? net.ndim : 0;
    T* phases = gradient + plain * kPitch;
    if (fourier && (to.x || to.matrix_sum)) {
        fourier_back<T, K>(net, points, phases);
        __syncthreads();
    }
    if (to.x)
        for_each_point<P>(net.ndim, [&](int d, int p) {
            if (!points.has(p)) return;
            T sum = plain ? gradient[d * kPitch + p] : T(0);
            if (fourier)
                for (int f = 0; f < net.frequencies; ++f)
                    sum += net.scale * net.table[d * net.frequencies + f] * phases[f * kPitch + p];
            if (net.output == Output::kPosition) sum -= grad_y[(points.first + p) * net.out + d];
            to.x[(points.first + p) * net.ndim + d] = sum;
        });
    if (to.matrix_sum)
        for (int i = threadIdx.x; i < net.ndim * net.frequencies; i += kFieldThreads) {
            const int d = i / net.frequencies, f = i % net.frequencies;
            T sum = 0;
            for (int p = 0; p < P && points.has(p); ++p) {
                sum += points.at(net, p, d) * phases[f * kPitch + p];
                if (d < K) sum += phases[f * kPitch + (d + 1) * P + p];
            }
            to.matrix_sum[i] += net.scale * sum;
        }
    if (to.grid) store_feature_gradients<T, K>(gradient, net.encoded, points, to, to.grid);
    const T* latents = gradient + net.encoded * kPitch;
    if (to.latent)
        for_each_point<P>(net.latent_width, [&](int c, int p) {
            if (points.has(p)) to.latent[(points.first + p) * net.latent_width + c] = latents[c * kPitch + p];
        });
    if (to.latent_sum)
        for (int c = threadIdx.x; c < net.latent_width; c += kFieldThreads)
            for (int p = 0; p < P && points.has(p); ++p) to.latent_sum[c] += latents[c * kPitch + p];
    if (to.volume)
        store_feature_gradients<T, K>(latents + net.latent_width * kPitch, net.volume_layout.features, points,
                                      to, to.volume);
}

}  // namespace gpu
}  // namespace nr
