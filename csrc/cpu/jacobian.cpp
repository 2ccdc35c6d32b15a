// Determinant of the map's Jacobian on a lattice, the penalties on it, and their gradients. The backward pass
// gathers: P[c][k] = (dL / d det) cofactor[c][k] is computed for strips of rows and a ring of three planes,
// and every voxel then sums the stencil's adjoint over its neighbours. Nothing of volume size is allocated
// and nothing is accumulated across threads, so results do not depend on their number.
#include "math/jacobian.h"

#include <algorithm>

#include "cpu/lattice.h"
#include "cpu/loops.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "math/penalty.h"

namespace nr {

namespace {

// A 2-D field is a 3-D one with a single plane and no derivative along the first axis.
template <class T, int ND>
struct Lattice {
    int64_t planes, rows, width, voxels;
    Stencil<T> z, y, x;

    explicit Lattice(const LatticeShape& s)
        : planes(ND == 3 ? s.size[0] : 1),
          rows(s.size[ND - 2]),
          width(s.size[ND - 1]),
          voxels(planes * rows * width),
          z(planes, ND == 3 ? s.spacing[0] : 1, s.scheme),
          y(rows, s.spacing[ND - 2], s.scheme),
          x(width, s.spacing[ND - 1], s.scheme) {}
};

// Calls visit(x, J) for every voxel of a row; u is one batch item. The ends of the row are peeled so that the
// inner loop has fixed neighbours and vectorises.
template <class T, int ND, class Visit>
inline void for_row(const Lattice<T, ND>& lattice, const T* u, int64_t plane, int64_t row, Visit&& visit) {
    const int64_t width = lattice.width, slice = lattice.rows * width;
    const T* centre[ND];
    const T *y0[ND], *y1[ND], *z0[ND], *z1[ND];
    for (int c = 0; c < ND; ++c) {
        const T* channel = u + c * lattice.voxels;
        centre[c] = channel + plane * slice + row * width;
        y0[c] = channel + plane * slice + lattice.y.lower[row] * width;
        y1[c] = channel + plane * slice + lattice.y.upper[row] * width;
        z0[c] = channel + lattice.z.lower[plane] * slice + row * width;
        z1[c] = channel + lattice.z.upper[plane] * slice + row * width;
    }
    const T y_factor = lattice.y.factor[row], z_factor = lattice.z.factor[plane];
    const auto at = [&](int64_t i, int64_t lower, int64_t upper, T factor) __attribute__((always_inline)) {
        T j[ND * ND];
        for (int c = 0; c < ND; ++c) {
            j[c * ND + ND - 1] = (centre[c][upper] - centre[c][lower]) * factor;
            j[c * ND + ND - 2] = (y1[c][i] - y0[c][i]) * y_factor;
            if (ND == 3) j[c * ND] = (z1[c][i] - z0[c][i]) * z_factor;
        }
        visit(i, j);
    };
    const auto end = [&](int64_t i) { at(i, lattice.x.lower[i], lattice.x.upper[i], lattice.x.factor[i]); };
    end(0);
    if (width > 2) {
        const int64_t below = lattice.x.lower[1] - 1, above = lattice.x.upper[1] - 1;
        const T factor = lattice.x.factor[1];
        NR_INDEPENDENT
        for (int64_t i = 1; i < width - 1; ++i) at(i, i + below, i + above, factor);
    }
    if (width > 1) end(width - 1);
}

template <class T, int ND>
void determinant(const LatticeShape& shape, const T* u, T* out, int threads) {
    const Lattice<T, ND> lattice(shape);
    const int64_t rows = lattice.planes * lattice.rows;
    parallel_for(shape.batch * rows, threads, 64, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
            const int64_t batch = r / rows, plane = r % rows / lattice.rows, row = r % lattice.rows;
            T* to = out + r * lattice.width;
            for_row(lattice, u + batch * ND * lattice.voxels, plane, row,
                    [to](int64_t i, const T(&j)[ND* ND]) { to[i] = map_determinant(j); });
        }
    });
}

constexpr int64_t kRowsPerSum = 256;  // rows that share one partial sum, whatever the number of threads

template <class T, int ND>
PenaltyTotal loss(const LatticeShape& shape, Penalty penalty, T threshold, const T* u, int threads) {
    const Lattice<T, ND> lattice(shape);
    const int64_t rows = lattice.planes * lattice.rows, all = shape.batch * rows;
    std::vector<PenaltyTotal> partial((all + kRowsPerSum - 1) / kRowsPerSum);
    parallel_for(static_cast<int64_t>(partial.size()), threads, 1, [&](int64_t begin, int64_t end, int) {
        std::vector<T> determinants(lattice.width);
        T* det = determinants.data();
        for (int64_t p = begin; p < end; ++p) {
            for (int64_t r = p * kRowsPerSum; r < std::min(all, (p + 1) * kRowsPerSum); ++r) {
                const int64_t batch = r / rows, plane = r % rows / lattice.rows, row = r % lattice.rows;
                for_row(lattice, u + batch * ND * lattice.voxels, plane, row,
                        [det](int64_t i, const T(&j)[ND* ND]) { det[i] = map_determinant(j); });
                double sum = 0;
                int32_t folds = 0;
#if defined(_OPENMP)
#pragma omp simd reduction(+ : sum, folds)
#endif
                for (int64_t i = 0; i < lattice.width; ++i) {
                    sum += penalty_value(penalty, det[i], threshold);
                    folds += det[i] <= 0;
                }
                partial[p].mean += sum;
                partial[p].folds += folds;
            }
        }
    });
    PenaltyTotal total;
    for (const PenaltyTotal& p : partial) {
        total.mean += p.mean;
        total.folds += p.folds;
    }
    total.mean /= static_cast<double>(shape.batch * lattice.voxels);
    return total;
}

// --- backward
// -----------------------------------------------------------------------------------------------------

constexpr int64_t kStripRows =
    16;  // rows of output that one strip covers; its ring of planes stays in the L2 cache
constexpr int64_t kStripPlanes = 32;  // planes that one work item covers

// The terms P of one strip: entries [c][k] of rows first - 1 ... last + 1, each row with one zero on either
// side.
template <class T, int ND>
struct Terms {
    int64_t rows, stride;
    std::vector<T> values;

    Terms(int64_t rows, int64_t width)
        : rows(rows), stride(width + 2), values(ND * ND * rows * stride, T(0)) {}
    T* row(int c, int k, int64_t r) { return values.data() + ((c * ND + k) * rows + r) * stride + 1; }
};

// weight(batch, plane, row, x, det) is dL / d det.
template <class T, int ND, class Weight>
void gather_gradient(const LatticeShape& shape, const T* u, T* grad, int threads, Weight&& weight) {
    const Lattice<T, ND> lattice(shape);
    const int64_t width = lattice.width, slice = lattice.rows * width;
    const int64_t strips = (lattice.rows + kStripRows - 1) / kStripRows;
    const int64_t depths = (lattice.planes + kStripPlanes - 1) / kStripPlanes;
    parallel_for(shape.batch * strips * depths, threads, 1, [&](int64_t begin, int64_t end, int) {
        std::vector<Terms<T, ND>> ring(3, Terms<T, ND>(kStripRows + 2, width));
        for (int64_t item = begin; item < end; ++item) {
            const int64_t batch = item / (strips * depths), strip = item / depths % strips,
                          depth = item % depths;
            const T* field = u + batch * ND * lattice.voxels;
            const int64_t first = strip * kStripRows, last = std::min(lattice.rows, first + kStripRows);
            const int64_t top = depth * kStripPlanes, bottom = std::min(lattice.planes, top + kStripPlanes);

            const auto fill = [&](int64_t plane) {
                if (plane < 0 || plane >= lattice.planes) return;
                Terms<T, ND>& terms = ring[plane % 3];
                for (int64_t r = std::max<int64_t>(first - 1, 0); r < std::min(lattice.rows, last + 1); ++r) {
                    T* to[ND * ND];
                    for (int e = 0; e < ND * ND; ++e) to[e] = terms.row(e / ND, e % ND, r - first + 1);
                    for_row(lattice, field, plane, r, [&](int64_t i, const T(&j)[ND* ND]) {
                        T cofactor[ND * ND];
                        map_cofactor(j, cofactor);
                        const T w = weight(batch, plane, r, i, map_determinant(j));
                        for (int e = 0; e < ND * ND; ++e) to[e][i] = w * cofactor[e];
                    });
                }
            };
            fill(top - 1);
            fill(top);
            for (int64_t plane = top; plane < bottom; ++plane) {
                fill(plane + 1);
                // Neighbours that do not exist have weight 0; this plane stands in for them.
                Terms<T, ND>& here = ring[plane % 3];
                Terms<T, ND>& above = plane > 0 ? ring[(plane - 1) % 3] : here;
                Terms<T, ND>& below = plane + 1 < lattice.planes ? ring[(plane + 1) % 3] : here;
                const T za = lattice.z.before[plane], zs = lattice.z.self[plane], zb = lattice.z.after[plane];
                for (int64_t r = first; r < last; ++r) {
                    const int64_t at = r - first + 1;
                    const int64_t up = r > 0 ? at - 1 : at, down = r + 1 < lattice.rows ? at + 1 : at;
                    const T ya = lattice.y.before[r], ys = lattice.y.self[r], yb = lattice.y.after[r];
                    const T *xa = lattice.x.before.data(), *xs = lattice.x.self.data(),
                            *xb = lattice.x.after.data();
                    for (int c = 0; c < ND; ++c) {
                        const T *px = here.row(c, ND - 1, at), *py = here.row(c, ND - 2, at);
                        const T *py0 = here.row(c, ND - 2, up), *py1 = here.row(c, ND - 2, down);
                        const T *pz = here.row(c, 0, at), *pz0 = above.row(c, 0, at),
                                *pz1 = below.row(c, 0, at);
                        T* to = grad + (batch * ND + c) * lattice.voxels + plane * slice + r * width;
                        NR_INDEPENDENT
                        for (int64_t i = 0; i < width; ++i) {
                            T sum = xa[i] * px[i - 1] + xs[i] * px[i] + xb[i] * px[i + 1];
                            sum += ya * py0[i] + ys * py[i] + yb * py1[i];
                            if (ND == 3) sum += za * pz0[i] + zs * pz[i] + zb * pz1[i];
                            to[i] = sum;
                        }
                    }
                }
            }
        }
    });
}

bool empty(const LatticeShape& shape) {
    int64_t size = shape.batch * shape.channels;
    for (int64_t n : shape.size) size *= n;
    return size == 0;
}

}  // namespace

template <class T>
void jacobian_determinant_forward(const LatticeShape& shape, const T* displacement, T* det, int threads) {
    if (empty(shape)) return;
    (shape.size.size() == 2 ? determinant<T, 2> : determinant<T, 3>)(shape, displacement, det, threads);
}

template <class T>
void jacobian_determinant_backward(const LatticeShape& shape, const T* grad_determinant,
                                   const T* displacement, T* grad_displacement, int threads) {
    if (empty(shape)) return;
    const int64_t width = shape.size.back(), rows = shape.size[shape.size.size() - 2];
    const int64_t planes = shape.size.size() == 3 ? shape.size[0] : 1;
    const auto weight = [=](int64_t batch, int64_t plane, int64_t row, int64_t i, T) {
        return grad_determinant[((batch * planes + plane) * rows + row) * width + i];
    };
    if (shape.size.size() == 2)
        gather_gradient<T, 2>(shape, displacement, grad_displacement, threads, weight);
    else
        gather_gradient<T, 3>(shape, displacement, grad_displacement, threads, weight);
}

template <class T>
PenaltyTotal jacobian_loss_forward(const LatticeShape& shape, Penalty penalty, double threshold,
                                   const T* displacement, int threads) {
    if (empty(shape)) return {};
    const auto run = shape.size.size() == 2 ? loss<T, 2> : loss<T, 3>;
    return run(shape, penalty, static_cast<T>(threshold), displacement, threads);
}

template <class T>
void jacobian_loss_backward(const LatticeShape& shape, Penalty penalty, double threshold, double scale,
                            const T* displacement, T* grad_displacement, int threads) {
    if (empty(shape)) return;
    double count = static_cast<double>(shape.batch);
    for (int64_t n : shape.size) count *= static_cast<double>(n);
    const T factor = static_cast<T>(scale / count), limit = static_cast<T>(threshold);
    const auto weight = [=](int64_t, int64_t, int64_t, int64_t, T det) {
        return factor * penalty_slope(penalty, det, limit);
    };
    if (shape.size.size() == 2)
        gather_gradient<T, 2>(shape, displacement, grad_displacement, threads, weight);
    else
        gather_gradient<T, 3>(shape, displacement, grad_displacement, threads, weight);
}

#define NR_INSTANTIATE(T)                                                                                \
    template void jacobian_determinant_forward<T>(const LatticeShape&, const T*, T*, int);               \
    template void jacobian_determinant_backward<T>(const LatticeShape&, const T*, const T*, T*, int);    \
    template PenaltyTotal jacobian_loss_forward<T>(const LatticeShape&, Penalty, double, const T*, int); \
    template void jacobian_loss_backward<T>(const LatticeShape&, Penalty, double, double, const T*, T*, int);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace nr
