// Determinant of the map's Jacobian on a lattice, the penalties on it, and their gradients. The backward pass
// gathers: a block goes through the planes of its tile, computes P[c][k] = (dL / d det) cofactor[c][k] of
// one plane at a time for its columns and the rim around them, exchanges the terms along y and x in shared
// memory and keeps those along z in registers. No atomics, and nothing of volume size beside the result.
#include <type_traits>

#include "cuda/lattice_tiles.h"
#include "math/jacobian.h"

namespace nr {
namespace gpu {

namespace {

template <class T, int ND>
struct JacobianLattice {
    LatticeTiles tiles;
    LatticeAxis<T> z, y, x;

    explicit JacobianLattice(const LatticeShape& s) : tiles(s.batch, s.size) {
        if (ND == 3) z = {tiles.planes, s.spacing[0], s.scheme};
        y = {tiles.rows, s.spacing[ND - 2], s.scheme};
        x = {tiles.width, s.spacing[ND - 1], s.scheme};
    }
};

// J at a voxel of one batch item; `at` is its place in a channel.
template <class T, int ND>
__device__ __forceinline__ void jacobian_at(const JacobianLattice<T, ND>& lattice, const T* item, int64_t at,
                                            int plane, const LatticeDifference<T>& dy,
                                            const LatticeDifference<T>& dx, T (&j)[ND * ND]) {
    const LatticeTiles& tiles = lattice.tiles;
    const LatticeDifference<T> dz = lattice.z.at(plane);
    const int width = tiles.width, slice = tiles.slice();
#pragma unroll
    for (int c = 0; c < ND; ++c) {
        const T* u = item + c * tiles.voxels + at;
        j[c * ND + ND - 1] = (u[dx.upper] - u[dx.lower]) * dx.factor;
        j[c * ND + ND - 2] = (u[dy.upper * width] - u[dy.lower * width]) * dy.factor;
        if (ND == 3) j[c * ND] = (u[dz.upper * slice] - u[dz.lower * slice]) * dz.factor;
    }
}

// Calls visit(place in the item, determinant) for every voxel of the thread's column.
template <class T, int ND, class Visit>
__device__ __forceinline__ void for_determinants(const JacobianLattice<T, ND>& lattice,
                                                 const LatticeColumn& column, const T* u,
                                                 const Visit& visit) {
    if (!column.inside) return;
    const LatticeTiles& tiles = lattice.tiles;
    const T* item = u + column.volume * ND * tiles.voxels;
    const LatticeDifference<T> dy = lattice.y.at(column.y), dx = lattice.x.at(column.x);
    int64_t at = (int64_t{1} * column.z0 * tiles.rows + column.y) * tiles.width + column.x;
    for (int plane = column.z0; plane < column.z1; ++plane, at += tiles.slice()) {
        T j[ND * ND];
        jacobian_at(lattice, item, at, plane, dy, dx, j);
        visit(at, map_determinant(j));
    }
}

template <class T, int ND>
__global__ void __launch_bounds__(kLatticeThreads)
    jacobian_determinants(const JacobianLattice<T, ND> lattice, const T* u, T* determinant) {
    const LatticeColumn column(lattice.tiles);
    T* to = determinant + column.volume * lattice.tiles.voxels;
    for_determinants(lattice, column, u, [&](int64_t at, T det) { to[at] = det; });
}

template <class T, int ND>
__global__ void __launch_bounds__(kLatticeThreads)
    jacobian_penalties(const JacobianLattice<T, ND> lattice, Penalty penalty, T threshold, const T* u,
                       LatticeSum* partial) {
    const LatticeColumn column(lattice.tiles);
    double sum = 0, folds = 0;
    for_determinants(lattice, column, u, [&](int64_t, T det) {
        sum += static_cast<double>(penalty_value(penalty, det, threshold));
        folds += det <= 0 ? 1.0 : 0.0;
    });
    leave_sum(sum, folds, partial);
}

// dL / d det, one number a voxel.
template <class T>
struct GivenSlope {
    const T* upstream;
    __device__ T operator()(int64_t voxel, T) const { return upstream[voxel]; }
};

// The slope of the mean penalty.
template <class T>
struct PenaltySlope {
    const T* upstream;
    double count;
    Penalty penalty;
    T threshold;
    __device__ T operator()(int64_t, T det) const {
        return static_cast<T>(static_cast<double>(*upstream) / count) *
               penalty_slope(penalty, det, threshold);
    }
};

template <class T, int ND, class Slope>
__global__ void __launch_bounds__(kLatticeThreads, sizeof(T) == 4 ? 3 : 2)
    jacobian_gradient(const JacobianLattice<T, ND> lattice, const Slope slope, const T* u, T* grad) {
    constexpr int kRows = kTileRows + 2, kPitch = kTileWidth + 2;
    __shared__ T along_y[ND][kRows][kPitch], along_x[ND][kRows][kPitch];
    const LatticeTiles& tiles = lattice.tiles;
    const LatticeColumn column(tiles);
    const int thread = static_cast<int>(threadIdx.x), x = column.x, y = column.y;
    const int row = thread / kTileWidth + 1, place = thread % kTileWidth + 1;  // in the tile with its rim
    const T* item = u + column.volume * ND * tiles.voxels;

    // The terms of a voxel of the tile or its rim.
    const auto compute = [&](int plane, int r, int p, T(&terms)[ND* ND]) {
        const int vy = y - row + r, vx = x - place + p;
        if (vy < 0 || vy >= tiles.rows || vx < 0 || vx >= tiles.width) return;
        const int64_t at = (int64_t{1} * plane * tiles.rows + vy) * tiles.width + vx;
        T j[ND * ND];
        jacobian_at(lattice, item, at, plane, lattice.y.at(vy), lattice.x.at(vx), j);
        map_cofactor(j, terms);
        const T w = slope(column.volume * tiles.voxels + at, map_determinant(j));
#pragma unroll
        for (int e = 0; e < ND * ND; ++e) terms[e] *= w;
    };
    // A thread of the first ones has a place in the rim as well; its corners are not needed.
    const int side = thread - 2 * kTileWidth;
    const int rim_row = side >= 0 ? side % kTileRows + 1 : thread < kTileWidth ? 0 : kRows - 1;
    const int rim_place = side < 0 ? place : side < kTileRows ? 0 : kPitch - 1;
    const auto store = [&](int plane, const T(&sum)[ND]) {
        const int64_t at = (int64_t{1} * plane * tiles.rows + y) * tiles.width + x;
#pragma unroll
        for (int c = 0; c < ND; ++c) grad[(column.volume * ND + c) * tiles.voxels + at] = sum[c];
    };

    T sum[ND] = {}, before[ND] = {};  // of the plane at work and, along z, the terms of the one before it
    const int first = ND == 3 ? column.z0 - 1 : column.z0, last = ND == 3 ? column.z1 : column.z1 - 1;
#pragma unroll 1
    for (int plane = first; plane <= last; ++plane) {
        const bool own = plane >= column.z0 && plane < column.z1;
        T along_z[ND] = {};
        if (plane >= 0 && plane < tiles.planes) {
            const int places = own && thread < 2 * kTileWidth + 2 * kTileRows ? 2 : 1;
#pragma unroll 1
            for (int k = 0; k < places; ++k) {
                const int r = k ? rim_row : row, p = k ? rim_place : place;
                T terms[ND * ND] = {};
                compute(plane, r, p, terms);
#pragma unroll
                for (int c = 0; c < ND; ++c) {
                    if (k == 0) along_z[c] = terms[c * ND];
                    if (!own) continue;
                    along_y[c][r][p] = terms[c * ND + ND - 2];
                    along_x[c][r][p] = terms[c * ND + ND - 1];
                }
            }
        }
        __syncthreads();
        if (column.inside) {
            if (ND == 3 && plane > column.z0) {
                const T w = lattice.z.weight(plane, plane - 1);
#pragma unroll
                for (int c = 0; c < ND; ++c) sum[c] += weighted(w, along_z[c]);
                store(plane - 1, sum);
            }
            if (own) {
                const T ya = lattice.y.weight(y - 1, y), ys = lattice.y.weight(y, y);
                const T yb = lattice.y.weight(y + 1, y);
                const T xa = lattice.x.weight(x - 1, x), xs = lattice.x.weight(x, x);
                const T xb = lattice.x.weight(x + 1, x);
                const T za = lattice.z.weight(plane - 1, plane), zs = lattice.z.weight(plane, plane);
#pragma unroll
                for (int c = 0; c < ND; ++c) {
                    sum[c] = weighted(xa, along_x[c][row][place - 1]) + weighted(xs, along_x[c][row][place]) +
                             weighted(xb, along_x[c][row][place + 1]);
                    sum[c] += weighted(ya, along_y[c][row - 1][place]) +
                              weighted(ys, along_y[c][row][place]) + weighted(yb, along_y[c][row + 1][place]);
                    if (ND == 3) sum[c] += weighted(za, before[c]) + weighted(zs, along_z[c]);
                }
                if (ND == 2) store(plane, sum);
            }
        }
#pragma unroll
        for (int c = 0; c < ND; ++c) before[c] = along_z[c];
        __syncthreads();
    }
}

template <class T, int ND, class Slope>
void run_gradient(const LatticeShape& shape, const Slope& slope, const T* u, T* grad, Where where) {
    const DeviceGuard guard(where.device);
    const JacobianLattice<T, ND> lattice(shape);
    launch(jacobian_gradient<T, ND, Slope>, lattice.tiles.blocks, kLatticeThreads, 0,
           static_cast<cudaStream_t>(where.stream), lattice, slope, u, grad);
}

// Calls run with the number of axes as a type.
template <class Run>
void with_axes(const LatticeShape& shape, const Run& run) {
    if (shape.size.size() == 2)
        run(std::integral_constant<int, 2>{});
    else
        run(std::integral_constant<int, 3>{});
}

double voxels_of(const LatticeShape& shape) {
    double count = static_cast<double>(shape.batch);
    for (int64_t n : shape.size) count *= static_cast<double>(n);
    return count;
}

}  // namespace

size_t lattice_scratch(const LatticeShape& shape) {
    const LatticeTiles tiles(shape.batch * shape.channels, shape.size);
    return static_cast<size_t>(tiles.blocks) * sizeof(LatticeSum);
}

template <class T>
void jacobian_determinant_forward(const LatticeShape& shape, const T* u, T* determinant, Where where) {
    with_axes(shape, [&](auto axes) {
        constexpr int ND = decltype(axes)::value;
        const DeviceGuard guard(where.device);
        const JacobianLattice<T, ND> lattice(shape);
        launch(jacobian_determinants<T, ND>, lattice.tiles.blocks, kLatticeThreads, 0,
               static_cast<cudaStream_t>(where.stream), lattice, u, determinant);
    });
}

template <class T>
void jacobian_determinant_backward(const LatticeShape& shape, const T* upstream, const T* u, T* grad_u,
                                   Where where) {
    with_axes(shape, [&](auto axes) {
        run_gradient<T, decltype(axes)::value>(shape, GivenSlope<T>{upstream}, u, grad_u, where);
    });
}

template <class T>
void jacobian_loss_forward(const LatticeShape& shape, Penalty penalty, double threshold, const T* u, T* value,
                           int64_t* folds, void* scratch, Where where) {
    with_axes(shape, [&](auto axes) {
        constexpr int ND = decltype(axes)::value;
        const DeviceGuard guard(where.device);
        const auto stream = static_cast<cudaStream_t>(where.stream);
        const JacobianLattice<T, ND> lattice(shape);
        auto* partial = static_cast<LatticeSum*>(scratch);
        launch(jacobian_penalties<T, ND>, lattice.tiles.blocks, kLatticeThreads, 0, stream, lattice, penalty,
               static_cast<T>(threshold), u, partial);
        launch(lattice_total<T>, 1, kLatticeThreads, 0, stream, partial, lattice.tiles.blocks,
               voxels_of(shape), value, folds);
    });
}

template <class T>
void jacobian_loss_backward(const LatticeShape& shape, Penalty penalty, double threshold, const T* upstream,
                            const T* u, T* grad_u, Where where) {
    const PenaltySlope<T> slope{upstream, voxels_of(shape), penalty, static_cast<T>(threshold)};
    with_axes(shape,
              [&](auto axes) { run_gradient<T, decltype(axes)::value>(shape, slope, u, grad_u, where); });
}

#define NR_INSTANTIATE(T)                                                                                 \
    template void jacobian_determinant_forward<T>(const LatticeShape&, const T*, T*, Where);              \
    template void jacobian_determinant_backward<T>(const LatticeShape&, const T*, const T*, T*, Where);   \
    template void jacobian_loss_forward<T>(const LatticeShape&, Penalty, double, const T*, T*, int64_t*,  \
                                           void*, Where);                                                 \
    template void jacobian_loss_backward<T>(const LatticeShape&, Penalty, double, const T*, const T*, T*, \
                                            Where);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace gpu
}  // namespace nr
