// Maps of derivatives on their way into the backward pass: read whole, or from a ring of planes that is
// filled slab by slab.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/boxes.h"

namespace nr {
namespace gpu {

constexpr int kSlabPlanes = 32;  // planes of gradient that a recomputing backward pass finishes at a time

// Fields of the backward pass: adjoint maps, times the upstream gradient where there is one.
template <class T, int F>
struct ReadAdjoints {
    static constexpr int kFields = F;
    const T* maps[F];
    const T* upstream;
    int rows, width, ring;

    __device__ uint32_t read(int plane, int y, int x, double* v) const {
        const int64_t in_plane = int64_t{1} * y * width + x, size = int64_t{1} * rows * width;
        const int64_t at = plane % ring * size + in_plane;
        const double g = upstream ? static_cast<double>(upstream[plane * size + in_plane]) : 1.0;
        bool any = false;
        for (int k = 0; k < F; ++k) {
            v[k] = g * static_cast<double>(maps[k][at]);
            any |= v[k] != 0;
        }
        return any ? 1 : 0;
    }
    __device__ static void clear(uint32_t count, double* s) {
        for (int k = 0; k < F; ++k) s[k] = count ? s[k] : 0.0;
    }
};

// What a launch hands its blocks of them.
template <class T, int F>
struct Adjoints {
    const T* maps[F];
    const T* upstream;
    int ring;  // planes of a channel of the maps

    // planes, rows, width: of the maps
    __device__ ReadAdjoints<T, F> of(int64_t channel, int planes, int rows, int width) const {
        ReadAdjoints<T, F> source{{}, nullptr, rows, width, ring};
        const int64_t plane = int64_t{1} * rows * width;
        for (int k = 0; k < F; ++k) source.maps[k] = maps[k] + channel * ring * plane;
        if (upstream) source.upstream = upstream + channel * planes * plane;
        return source;
    }
};

inline size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Slab by slab of gradient [z0, z1): visit(windows that are there, windows that it needs, z0, z1).
template <class Visit>
void for_slabs(const BoxAxis& z, const Visit& visit) {
    const BoxAxis back = z.adjoint();
    int done = 0;
    for (int z0 = 0; z0 < back.out; z0 += kSlabPlanes) {
        const int z1 = std::min(back.out, z0 + kSlabPlanes);
        const int needed = std::max(done, std::min(back.in, z1 + back.after));
        visit(done, needed, z0, z1);
        done = needed;
    }
}

// Planes that the ring has to hold.
inline int ring_planes(const BoxAxis& z) { return std::min(z.out, kSlabPlanes + z.adjoint().window() - 1); }

}  // namespace gpu
}  // namespace nr
