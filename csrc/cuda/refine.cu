// One Adam step on a dense displacement for -lncc(fixed, warped) + regularisation * diffusion. An item takes
// five launches: the warp, which also lays by a copy of the displacement; value, total and gradient of the
// similarity by the image; and one kernel for the image's slope, the diffusion's gradient, gathered from the
// copy, and Adam in place. A last launch makes the energies and counts the step, which only the device knows.
#include <algorithm>

#include "cuda/lattice_tiles.h"
#include "cuda/refine.h"
#include "math/adam.h"
#include "math/lncc.h"
#include "math/smoothness.h"
#include "math/trilinear.h"

namespace nr {
namespace gpu {

namespace {

// The geometry of one item.
template <int ND>
struct RefineLattice {
    LatticeTiles tiles;  // of the displacement
    int in[ND];          // of moving
    int64_t in_voxels = 1;
    int channels;

    explicit RefineLattice(const RefineShape& s) : tiles(1, s.size), channels(static_cast<int>(s.channels)) {
        for (int k = 0; k < ND; ++k) {
            in[k] = static_cast<int>(s.in[k]);
            in_voxels *= s.in[k];
        }
    }
};

// The cell of moving that a voxel falls into; what lies outside reads as 0, NaN too.
template <class T, int ND>
struct RefineCell {
    int low[ND];
    T weight[ND];  // of the upper side

    __device__ RefineCell(const RefineLattice<ND>& lattice, const int (&voxel)[3], const T (&u)[ND]) {
#pragma unroll
        for (int k = 0; k < ND; ++k) {
            T unused = 0;
            const T x = clip(static_cast<T>(voxel[3 - ND + k]) + u[k], T(-2),
                             static_cast<T>(lattice.in[k]) + 1, unused);
            const T floor = std::floor(x);
            low[k] = static_cast<int>(floor);
            weight[k] = x - floor;
        }
    }

    __device__ void corners(const RefineLattice<ND>& lattice, const T* image, T (&v)[1 << ND]) const {
#pragma unroll
        for (int c = 0; c < 1 << ND; ++c) {
            bool inside = true;
            unsigned offset = 0;
#pragma unroll
            for (int k = 0; k < ND; ++k) {
                const unsigned i = static_cast<unsigned>(low[k] + (c >> (ND - 1 - k) & 1));
                const unsigned size = static_cast<unsigned>(lattice.in[k]);
                inside &= i < size;
                offset = offset * size + i;
            }
            v[c] = inside ? image[offset] : T(0);
        }
    }
};

template <class T, int ND>
__global__ void __launch_bounds__(kLatticeThreads)
    refine_warp(const RefineLattice<ND> lattice, const T* moving, const T* displacement, T* warped, T* old) {
    const LatticeTiles& tiles = lattice.tiles;
    const LatticeColumn column(tiles);
    if (!column.inside) return;
    for (int plane = column.z0; plane < column.z1; ++plane) {
        const int64_t at = (int64_t{1} * plane * tiles.rows + column.y) * tiles.width + column.x;
        T u[ND];
#pragma unroll
        for (int k = 0; k < ND; ++k) old[k * tiles.voxels + at] = u[k] = displacement[k * tiles.voxels + at];
        const RefineCell<T, ND> cell(lattice, {plane, column.y, column.x}, u);
        for (int c = 0; c < lattice.channels; ++c) {
            T v[1 << ND];
            cell.corners(lattice, moving + c * lattice.in_voxels, v);
            warped[c * tiles.voxels + at] = interpolate(v, cell.weight);
        }
    }
}

// What the steps of all voxels share.
template <class T>
struct RefineRule {
    AdamRule<T> adam;  // of a first step
    double lr, beta1, beta2, eps, regularisation;
    double weight[3];  // of a squared difference along z, y, x in the mean
    T similarity;      // from the sum over the windows to the energy

    RefineRule(const RefineShape& s, const LatticeTiles& tiles)
        : adam(s.lr, s.beta1, s.beta2, s.eps, 1),
          lr(s.lr),
          beta1(s.beta1),
          beta2(s.beta2),
          eps(s.eps),
          regularisation(s.regularisation),
          similarity(static_cast<T>(-1.0 / static_cast<double>(s.channels * tiles.voxels))) {
        const int axes = static_cast<int>(s.size.size());
        const double n[3] = {double(tiles.planes), double(tiles.rows), double(tiles.width)};
        diffusion_weights(axes, n, {1, 1, 1}, axes, weight);
    }
};

// Adam's tensors, one item of them.
template <class T>
struct Moments {
    T *mean, *square, *largest;
};

template <class T, int ND, bool amsgrad>
__global__ void __launch_bounds__(kLatticeThreads, sizeof(T) == 4 ? 3 : 2)
    refine_update(const RefineLattice<ND> lattice, const RefineRule<T> rule, const int64_t* step,
                  const T* moving, const T* by_warped, const T* old, T* displacement,
                  const Moments<T> moments, double* partial) {
    __shared__ T powers[2];
    if (threadIdx.x == 0) {
        const AdamRule<T> now(rule.lr, rule.beta1, rule.beta2, rule.eps, static_cast<double>(*step + 1));
        powers[0] = now.rate;
        powers[1] = now.root;
    }
    __syncthreads();
    AdamRule<T> adam = rule.adam;
    adam.rate = powers[0];
    adam.root = powers[1];
    const LatticeTiles& tiles = lattice.tiles;
    const LatticeColumn column(tiles);
    const int slice = tiles.slice(), x = column.x, y = column.y;
    // A missing neighbour is the voxel itself: difference 0.
    const int left = x > 0 ? -1 : 0, right = x + 1 < tiles.width ? 1 : 0;
    const int up = y > 0 ? -tiles.width : 0, down = y + 1 < tiles.rows ? tiles.width : 0;
    const T wz = static_cast<T>(rule.weight[0]), wy = static_cast<T>(rule.weight[1]);
    const T wx = static_cast<T>(rule.weight[2]), twice = static_cast<T>(2 * rule.regularisation);
    double sum = 0;
#pragma unroll 1
    for (int plane = column.z0; plane < column.z1 && column.inside; ++plane) {
        const int64_t at = (int64_t{1} * plane * tiles.rows + y) * tiles.width + x;
        const int above = plane > 0 ? -slice : 0, below = plane + 1 < tiles.planes ? slice : 0;
        T u[ND], gradient[ND] = {};
#pragma unroll
        for (int k = 0; k < ND; ++k) u[k] = old[k * tiles.voxels + at];
        const RefineCell<T, ND> cell(lattice, {plane, y, x}, u);
        for (int c = 0; c < lattice.channels; ++c) {
            T v[1 << ND], slope[ND];
            cell.corners(lattice, moving + c * lattice.in_voxels, v);
            interpolate_gradient(v, cell.weight, slope);
            const T upstream = rule.similarity * by_warped[c * tiles.voxels + at];
#pragma unroll
            for (int k = 0; k < ND; ++k) gradient[k] += upstream * slope[k];
        }
#pragma unroll
        for (int k = 0; k < ND; ++k) {
            const int64_t i = k * tiles.voxels + at;
            const T *v = old + i, c = u[k];
            const T dx = v[right] - c, dy = v[down] - c, dz = v[below] - c;
            sum += static_cast<double>(wx * dx * dx + wy * dy * dy + wz * dz * dz);
            const T bend = wx * ((c - v[left]) - dx) + wy * ((c - v[up]) - dy) + wz * ((c - v[above]) - dz);
            T m = moments.mean[i], s = moments.square[i], l = amsgrad ? moments.largest[i] : T(0);
            displacement[i] = c - adam_step<amsgrad>(adam, gradient[k] + twice * bend, m, s, l);
            moments.mean[i] = m;
            moments.square[i] = s;
            if (amsgrad) moments.largest[i] = l;
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block an item: its energy. The first block counts the step.
template <class T>
__global__ void __launch_bounds__(kLatticeThreads)
    refine_finish(const double* partial, int64_t blocks, const T* similarity, double regularisation,
                  int64_t batch, double* energy, int64_t* step) {
    const int64_t item = blockIdx.x;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < blocks; i += kLatticeThreads) sum += partial[item * blocks + i];
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    if (item < batch)
        energy[item] = blocks ? regularisation * sum - static_cast<double>(similarity[item]) : 0.0;
    if (item == 0) *step += 1;
}

// Takes pieces off scratch; without scratch it counts their bytes.
struct Pieces {
    unsigned char* begin;
    size_t used = 0;

    template <class T>
    T* take(int64_t count) {
        const size_t at = used;
        used += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
        return begin ? reinterpret_cast<T*>(begin + at) : nullptr;
    }
};

LnccShape similarity_of(const RefineShape& s) {
    LnccShape shape;
    shape.batch = 1;
    shape.channels = s.channels;
    shape.size = s.size;
    shape.window = s.window;
    shape.eps_mode = EpsMode::kProduct;
    shape.eps = 1e-5;
    shape.flat_tol = 1e-6;
    return shape;
}

template <class T>
struct RefineRoom {
    T *old, *adjoints[3], *similarity;
    double *partial, *count;
    unsigned char* lncc;
    size_t bytes;

    RefineRoom(const RefineShape& s, const LatticeTiles& tiles, int device, void* scratch) {
        Pieces pieces{static_cast<unsigned char*>(scratch)};
        const LnccShape shape = similarity_of(s);
        old = pieces.take<T>(static_cast<int64_t>(s.size.size()) * tiles.voxels);
        for (T*& map : adjoints) map = pieces.take<T>(s.channels * tiles.voxels);
        similarity = pieces.take<T>(s.batch);
        partial = pieces.take<double>(s.batch * tiles.blocks);
        count = pieces.take<double>(1);
        lncc = pieces.take<unsigned char>(static_cast<int64_t>(std::max(
            lncc_forward_scratch(shape, device), lncc_backward_scratch(shape, 3, false, sizeof(T), device))));
        bytes = pieces.used;
    }
};

template <class T, int ND>
void run(const RefineShape& shape, const T* fixed, const T* moving, T* displacement,
         const Moments<T>& moments, const int64_t* step, T* work, const RefineRoom<T>& room, Where where) {
    const auto stream = static_cast<cudaStream_t>(where.stream);
    const RefineLattice<ND> lattice(shape);
    const LatticeTiles& tiles = lattice.tiles;
    const RefineRule<T> rule(shape, tiles);
    const LnccShape similarity = similarity_of(shape);
    const int64_t image = shape.channels * tiles.voxels;
    T *warped = work, *by_warped = work + image;
    const std::vector<T*> maps(room.adjoints, room.adjoints + 3);
    const std::vector<const T*> saved(maps.begin(), maps.end());
    const auto update = moments.largest ? refine_update<T, ND, true> : refine_update<T, ND, false>;
    for (int64_t b = 0; b < shape.batch; ++b) {
        const int64_t field = b * ND * tiles.voxels;
        const T *f = fixed + b * image, *m = moving + b * shape.channels * lattice.in_voxels;
        launch(refine_warp<T, ND>, tiles.blocks, kLatticeThreads, 0, stream, lattice, m, displacement + field,
               warped, room.old);
        lncc_forward<T>(similarity, f, warped, nullptr, nullptr, room.similarity + b, room.count, maps,
                        room.lncc, where);
        // No upstream gradient: that of the sum over the windows.
        lncc_backward<T>(similarity, nullptr, false, room.count, f, warped, nullptr, saved, nullptr,
                         by_warped, room.lncc, where);
        const Moments<T> own{moments.mean + field, moments.square + field,
                             moments.largest ? moments.largest + field : nullptr};
        launch(update, tiles.blocks, kLatticeThreads, 0, stream, lattice, rule, step, m, by_warped, room.old,
               displacement + field, own, room.partial + b * tiles.blocks);
    }
}

}  // namespace

size_t refine_scratch(const RefineShape& shape, size_t item, int device) {
    const LatticeTiles tiles(1, shape.size);
    return item == sizeof(float) ? RefineRoom<float>(shape, tiles, device, nullptr).bytes
                                 : RefineRoom<double>(shape, tiles, device, nullptr).bytes;
}

template <class T>
void refine_step(const RefineShape& shape, const T* fixed, const T* moving, T* displacement, T* mean,
                 T* square, T* largest, int64_t* step, T* work, double* energy, void* scratch, Where where) {
    const DeviceGuard guard(where.device);
    const LatticeTiles tiles(1, shape.size);
    const RefineRoom<T> room(shape, tiles, where.device, scratch);
    const Moments<T> moments{mean, square, largest};
    if (tiles.blocks > 0)
        (shape.size.size() == 2 ? run<T, 2> : run<T, 3>)(shape, fixed, moving, displacement, moments, step,
                                                         work, room, where);
    launch(refine_finish<T>, std::max<int64_t>(shape.batch, 1), kLatticeThreads, 0,
           static_cast<cudaStream_t>(where.stream), room.partial, tiles.blocks, room.similarity,
           shape.regularisation, shape.batch, energy, step);
}

#define NR_INSTANTIATE(T)                                                                              \
    template void refine_step<T>(const RefineShape&, const T*, const T*, T*, T*, T*, T*, int64_t*, T*, \
                                 double*, void*, Where);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace gpu
}  // namespace nr
