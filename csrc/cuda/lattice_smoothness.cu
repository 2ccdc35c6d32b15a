// Mean squared first and second differences of a field, and their gradients, which gather: a voxel sums the
// differences that it takes part in, each computed again from its neighbours, which the caches hold.
#include "cuda/lattice_tiles.h"
#include "math/smoothness.h"

namespace nr {
namespace gpu {

namespace {

// Channels are alike, so batch and channel are one axis.
struct FieldLattice {
    LatticeTiles tiles;
    double fields;
    double n[3], h[3];
    int axes;

    explicit FieldLattice(const LatticeShape& s)
        : tiles(s.batch * s.channels, s.size),
          fields(static_cast<double>(s.batch * s.channels)),
          n{double(tiles.planes), double(tiles.rows), double(tiles.width)},
          h{1, 1, 1},
          axes(static_cast<int>(s.size.size())) {
        for (int k = 0; k < axes; ++k) h[3 - axes + k] = s.spacing[k];
    }
};

struct DiffusionWeights {
    double weight[3];

    explicit DiffusionWeights(const FieldLattice& f) {
        diffusion_weights(f.fields, f.n, f.h, f.axes, weight);
    }
};

struct BendingWeights {
    double pure[3], mixed[3];

    explicit BendingWeights(const FieldLattice& f) { bending_weights(f.fields, f.n, f.h, pure, mixed); }
};

__device__ __forceinline__ int64_t first_voxel(const LatticeTiles& tiles, const LatticeColumn& c) {
    return c.volume * tiles.voxels + (int64_t{1} * c.z0 * tiles.rows + c.y) * tiles.width + c.x;
}

template <class T>
__global__ void __launch_bounds__(kLatticeThreads)
    diffusion_sum(const LatticeTiles tiles, const DiffusionWeights w, const T* u, LatticeSum* partial) {
    const LatticeColumn column(tiles);
    double sum = 0;
    const auto add = [&](double weight, T difference) {
        sum += weight * (static_cast<double>(difference) * static_cast<double>(difference));
    };
    if (column.inside) {
        const bool right = column.x + 1 < tiles.width, down = column.y + 1 < tiles.rows;
        const T* v = u + first_voxel(tiles, column);
        T here = *v;
        for (int z = column.z0; z < column.z1; ++z, v += tiles.slice()) {
            const T below = z + 1 < tiles.planes ? v[tiles.slice()] : here;
            add(w.weight[0], below - here);
            if (down) add(w.weight[1], v[tiles.width] - here);
            if (right) add(w.weight[2], v[1] - here);
            here = below;
        }
    }
    leave_sum(sum, 0, partial);
}

template <class T>
__global__ void __launch_bounds__(kLatticeThreads)
    diffusion_gradient(const LatticeTiles tiles, const DiffusionWeights w, const T* upstream, const T* u,
                       T* grad) {
    const LatticeColumn column(tiles);
    if (!column.inside) return;
    const double scale = -2 * static_cast<double>(*upstream);  // the adjoint of a difference turns its sign
    const T wz = static_cast<T>(scale * w.weight[0]), wy = static_cast<T>(scale * w.weight[1]);
    const T wx = static_cast<T>(scale * w.weight[2]);
    // A missing neighbour is the voxel itself: difference 0.
    const int left = column.x > 0 ? -1 : 0, right = column.x + 1 < tiles.width ? 1 : 0;
    const int up = column.y > 0 ? -tiles.width : 0, down = column.y + 1 < tiles.rows ? tiles.width : 0;
    const int64_t first = first_voxel(tiles, column);
    const T* v = u + first;
    T* to = grad + first;
    T here = *v, above = column.z0 > 0 ? v[-tiles.slice()] : here;
    for (int z = column.z0; z < column.z1; ++z, v += tiles.slice(), to += tiles.slice()) {
        const T below = z + 1 < tiles.planes ? v[tiles.slice()] : here;
        *to = wx * second_difference(v[left], here, v[right]) + wy * second_difference(v[up], here, v[down]) +
              wz * second_difference(above, here, below);
        above = here;
        here = below;
    }
}

template <class T>
__global__ void __launch_bounds__(kLatticeThreads)
    bending_sum(const LatticeTiles tiles, const BendingWeights w, const T* u, LatticeSum* partial) {
    const LatticeColumn column(tiles);
    double sum = 0;
    const auto add = [&](double weight, T difference) {
        sum += weight * (static_cast<double>(difference) * static_cast<double>(difference));
    };
    if (column.inside) {
        const bool right = column.x + 1 < tiles.width, down = column.y + 1 < tiles.rows;
        const bool between_x = right && column.x > 0, between_y = down && column.y > 0;
        const int row = tiles.width, slice = tiles.slice();
        const T* v = u + first_voxel(tiles, column);
        for (int z = column.z0; z < column.z1; ++z, v += slice) {
            const bool below = z + 1 < tiles.planes;
            const T c = v[0];
            if (between_x) add(w.pure[2], second_difference(v[-1], c, v[1]));
            if (between_y) add(w.pure[1], second_difference(v[-row], c, v[row]));
            if (below && z > 0) add(w.pure[0], second_difference(v[-slice], c, v[slice]));
            if (down && right) add(w.mixed[0], (v[row + 1] - v[row]) - (v[1] - c));
            if (below && right) add(w.mixed[1], (v[slice + 1] - v[slice]) - (v[1] - c));
            if (below && down) add(w.mixed[2], (v[slice + row] - v[slice]) - (v[row] - c));
        }
    }
    leave_sum(sum, 0, partial);
}

template <class T>
__global__ void __launch_bounds__(kLatticeThreads)
    bending_gradient(const LatticeTiles tiles, const BendingWeights w, const T* upstream, const T* u,
                     T* grad) {
    const LatticeColumn column(tiles);
    if (!column.inside) return;
    const double scale = 2 * static_cast<double>(*upstream);
    T pure[3], mixed[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        pure[k] = static_cast<T>(scale * w.pure[k]);
        mixed[k] = static_cast<T>(scale * w.mixed[k]);
    }
    const AxisPlace<T, int> y(column.y, tiles.rows, tiles.width), x(column.x, tiles.width, 1);
    const int64_t first = first_voxel(tiles, column);
    const T* v = u + first;
    T* to = grad + first;
#pragma unroll 1
    for (int plane = column.z0; plane < column.z1; ++plane, v += tiles.slice(), to += tiles.slice()) {
        const AxisPlace<T, int> z(plane, tiles.planes, tiles.slice());
        *to = pure[0] * z.pure(v) + pure[1] * y.pure(v) + pure[2] * x.pure(v) +
              mixed[2] * mixed_adjoint(z, y, v) + mixed[1] * mixed_adjoint(z, x, v) +
              mixed[0] * mixed_adjoint(y, x, v);
    }
}

template <class T, class Weights>
using Sum = void (*)(LatticeTiles, Weights, const T*, LatticeSum*);

template <class T, class Weights>
void run_forward(Sum<T, Weights> kernel, const LatticeShape& shape, const T* u, T* value, void* scratch,
                 Where where) {
    const DeviceGuard guard(where.device);
    const auto stream = static_cast<cudaStream_t>(where.stream);
    const FieldLattice field(shape);
    auto* partial = static_cast<LatticeSum*>(scratch);
    const int64_t blocks = field.tiles.blocks;
    launch(kernel, blocks, kLatticeThreads, 0, stream, field.tiles, Weights(field), u, partial);
    launch(lattice_total<T>, 1, kLatticeThreads, 0, stream, partial, blocks, 1.0, value, nullptr);
}

template <class T, class Weights>
using Gradient = void (*)(LatticeTiles, Weights, const T*, const T*, T*);

template <class T, class Weights>
void run_backward(Gradient<T, Weights> kernel, const LatticeShape& shape, const T* upstream, const T* u,
                  T* grad_u, Where where) {
    const DeviceGuard guard(where.device);
    const FieldLattice field(shape);
    launch(kernel, field.tiles.blocks, kLatticeThreads, 0, static_cast<cudaStream_t>(where.stream),
           field.tiles, Weights(field), upstream, u, grad_u);
}

}  // namespace

template <class T>
void diffusion_loss_forward(const LatticeShape& shape, const T* u, T* value, void* scratch, Where where) {
    run_forward<T, DiffusionWeights>(diffusion_sum<T>, shape, u, value, scratch, where);
}

template <class T>
void diffusion_loss_backward(const LatticeShape& shape, const T* upstream, const T* u, T* grad_u,
                             Where where) {
    run_backward<T, DiffusionWeights>(diffusion_gradient<T>, shape, upstream, u, grad_u, where);
}

template <class T>
void bending_loss_forward(const LatticeShape& shape, const T* u, T* value, void* scratch, Where where) {
    run_forward<T, BendingWeights>(bending_sum<T>, shape, u, value, scratch, where);
}

template <class T>
void bending_loss_backward(const LatticeShape& shape, const T* upstream, const T* u, T* grad_u, Where where) {
    run_backward<T, BendingWeights>(bending_gradient<T>, shape, upstream, u, grad_u, where);
}

#define NR_INSTANTIATE(T)                                                                         \
    template void diffusion_loss_forward<T>(const LatticeShape&, const T*, T*, void*, Where);     \
    template void diffusion_loss_backward<T>(const LatticeShape&, const T*, const T*, T*, Where); \
    template void bending_loss_forward<T>(const LatticeShape&, const T*, T*, void*, Where);       \
    template void bending_loss_backward<T>(const LatticeShape&, const T*, const T*, T*, Where);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace gpu
}  // namespace nr
