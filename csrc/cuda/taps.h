// Weighted sums of several fields over separable windows, tile by tile as boxes.h does it, but with every
// tap: along z from the planes as they are (from the cache, after the first time), along x and y in shared
// memory, a few outputs of a thread at a time, so that a number read serves several of them.
#pragma once

#include <cstdint>

#include "cuda/boxes.h"

namespace nr {
namespace gpu {

constexpr int kMaxTaps = 384;  // of the three axes together: they travel with the launch

struct Taps {
    double weights[kMaxTaps];  // along z, then y, then x
    int y, x;                  // where those of y and x begin
};

// to[i] = sum over k of weights[k] from[i + k] for i < N, in steps; to may be from.
template <int N>
__device__ inline void weigh(const double* from, const double* weights, int window, int step, double* to,
                             int to_step) {
    double w[N], sum[N];
    for (int j = 0; j < N; ++j) w[j] = sum[j] = 0;
    for (int i = 0; i < window + N - 1; ++i) {
#pragma unroll
        for (int j = N - 1; j > 0; --j) w[j] = w[j - 1];
        w[0] = i < window ? weights[i] : 0.0;
        const double v = from[i * step];
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += w[j] * v;
    }
#pragma unroll
    for (int j = 0; j < N; ++j) to[j * to_step] = sum[j];
}

template <class Source>
__device__ inline void weigh_along_z(const Plan& p, const Taps& taps, const Tile& tile, const Source& source,
                                     int o, double* sums) {
    constexpr int F = Source::kFields;
    const BoxAxis &z = p.boxes.z, &y = p.boxes.y, &x = p.boxes.x;
    const int stride = p.height * p.pitch;
    const int first = o - z.before > 0 ? o - z.before : 0;
    const int last = o + z.after < z.in ? o + z.after : z.in - 1;
    for (int c = static_cast<int>(threadIdx.x); c < p.columns; c += kThreads) {
        const int row = c / p.width, column = c - row * p.width;
        const int iy = tile.y0 - y.before + row, ix = tile.x0 - x.before + column;
        double s[F];
        for (int k = 0; k < F; ++k) s[k] = 0;
        if (iy >= 0 && iy < y.in && ix >= 0 && ix < x.in)
#pragma unroll 2
            for (int plane = first; plane <= last; ++plane) {
                double v[F];
                source.read(plane, iy, ix, v);
                const double weight = taps.weights[plane - (o - z.before)];
                for (int k = 0; k < F; ++k) s[k] += weight * v[k];
            }
        for (int k = 0; k < F; ++k) sums[k * stride + row * p.pitch + column] = s[k];
    }
}

// Calls sink(plane, y, x, sums) for every output of the tile, as march() does.
template <class Source, class Sink>
__device__ inline void march(const Plan& p, const Taps& taps, const Tile& tile, unsigned char* memory,
                             const Source& source, Sink& sink) {
    constexpr int F = Source::kFields, N = 4;
    double* sums = reinterpret_cast<double*>(memory);
    double* rows = sums + F * p.height * p.pitch;
    for (int o = tile.z0; o < tile.z1; ++o) {
        weigh_along_z(p, taps, tile, source, o, sums);
        __syncthreads();
        for (int task = static_cast<int>(threadIdx.x); task < p.lines * (kTileX / N); task += kThreads) {
            const int piece = task / p.lines, line = task - piece * p.lines;
            weigh<N>(sums + line * p.pitch + piece * N, taps.weights + taps.x, p.boxes.x.window(), 1,
                     rows + line * kRowPitch + piece * N, 1);
        }
        __syncthreads();
        for (int task = static_cast<int>(threadIdx.x); task < F * kTileX; task += kThreads) {
            double* line = rows + task / kTileX * p.height * kRowPitch + task % kTileX;
            for (int i = 0; i < p.tile_y; i += N)  // in place: later outputs do not read these rows
                weigh<N>(line + i * kRowPitch, taps.weights + taps.y, p.boxes.y.window(), kRowPitch,
                         line + i * kRowPitch, kRowPitch);
        }
        __syncthreads();
        for_outputs<F>(p, tile, o, rows, sink);
    }
}

}  // namespace gpu
}  // namespace nr
