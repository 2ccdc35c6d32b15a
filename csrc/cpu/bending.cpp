// Mean squared second differences of a vector field (bending energy), and the gradient, which gathers: a
// voxel sums the differences that it takes part in, each computed again from its neighbours.
#include <algorithm>

#include "cpu/loops.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "math/smoothness.h"

namespace nr {

namespace {

constexpr int64_t kRowsPerSum = 256;  // rows that share one partial sum, whatever the number of threads

// Channels are alike, so batch and channel are one axis; 2-D is 3-D with one plane.
struct Grid {
    int64_t fields, planes, rows, width;
    // Of a squared difference in the loss, 0 where there are none: along axis k, and along the two axes other
    // than k, which counts twice.
    double pure[3], mixed[3];

    explicit Grid(const LatticeShape& s) {
        const size_t axes = s.size.size();
        fields = s.batch * s.channels;
        planes = axes == 3 ? s.size[0] : 1;
        rows = s.size[axes - 2];
        width = s.size[axes - 1];
        const double n[3] = {double(planes), double(rows), double(width)};
        const double h[3] = {axes == 3 ? s.spacing[0] : 1, s.spacing[axes - 2], s.spacing[axes - 1]};
        bending_weights(double(fields), n, h, pure, mixed);
    }
    int64_t all_rows() const { return width > 0 ? fields * planes * rows : 0; }
};

template <class T>
double row_energy(const Grid& grid, const T* here, int64_t plane, int64_t row) {
    const int64_t width = grid.width, slice = grid.rows * width;
    const bool inside_z = plane > 0 && plane + 1 < grid.planes, inside_y = row > 0 && row + 1 < grid.rows;
    const bool next_z = plane + 1 < grid.planes, next_y = row + 1 < grid.rows;
    const auto sum = [&](int64_t begin, int64_t end, double weight, auto&& difference) {
        double squares = 0;
#if defined(_OPENMP)
#pragma omp simd reduction(+ : squares)
#endif
        for (int64_t i = begin; i < end; ++i) {
            const double d = static_cast<double>(difference(i));
            squares += d * d;
        }
        return weight * squares;
    };
    const auto mixed = [&](int64_t end, double weight, const T* one, const T* other, int64_t step) {
        return sum(0, end, weight,
                   [=](int64_t i) { return (other[i + step] - other[i]) - (one[i + step] - one[i]); });
    };
    double energy = sum(1, width - 1, grid.pure[2],
                        [=](int64_t i) { return second_difference(here[i - 1], here[i], here[i + 1]); });
    const T *down = here + width, *below = here + slice;
    if (inside_y)
        energy += sum(0, width, grid.pure[1],
                      [=](int64_t i) { return second_difference(here[i - width], here[i], down[i]); });
    if (inside_z)
        energy += sum(0, width, grid.pure[0],
                      [=](int64_t i) { return second_difference(here[i - slice], here[i], below[i]); });
    if (next_y) energy += mixed(width - 1, grid.mixed[0], here, down, 1);
    if (next_z) energy += mixed(width - 1, grid.mixed[1], here, below, 1);
    if (next_y && next_z) energy += mixed(width, grid.mixed[2], here, below, width);
    return energy;
}

template <class T>
using Place = AxisPlace<T, int64_t>;

}  // namespace

template <class T>
double bending_loss_forward(const LatticeShape& shape, const T* u, int threads) {
    const Grid grid(shape);
    const int64_t all = grid.all_rows();
    std::vector<double> partial((all + kRowsPerSum - 1) / kRowsPerSum, 0.0);
    parallel_for(static_cast<int64_t>(partial.size()), threads, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t p = begin; p < end; ++p)
            for (int64_t r = p * kRowsPerSum; r < std::min(all, (p + 1) * kRowsPerSum); ++r)
                partial[p] +=
                    row_energy(grid, u + r * grid.width, r / grid.rows % grid.planes, r % grid.rows);
    });
    double sum = 0;
    for (double p : partial) sum += p;
    return sum;
}

template <class T>
void bending_loss_backward(const LatticeShape& shape, double scale, const T* u, T* grad, int threads) {
    const Grid grid(shape);
    const int64_t width = grid.width;
    T pure[3], cross[3];
    for (int k = 0; k < 3; ++k) {
        pure[k] = static_cast<T>(2 * scale * grid.pure[k]);
        cross[k] = static_cast<T>(2 * scale * grid.mixed[k]);
    }
    parallel_for(grid.all_rows(), threads, 64, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
            const Place<T> z(r / grid.rows % grid.planes, grid.planes, grid.rows * width);
            const Place<T> y(r % grid.rows, grid.rows, width);
            const T* here = u + r * width;
            T* to = grad + r * width;
            const auto at = [&](int64_t i, const Place<T>& x) __attribute__((always_inline)) {
                const T* c = here + i;
                to[i] = pure[0] * z.pure(c) + pure[1] * y.pure(c) + pure[2] * x.pure(c) +
                        cross[2] * mixed_adjoint(z, y, c) + cross[1] * mixed_adjoint(z, x, c) +
                        cross[0] * mixed_adjoint(y, x, c);
            };
            const int64_t left = std::min<int64_t>(2, width), right = std::max(left, width - 2);
            for (int64_t i = 0; i < left; ++i) at(i, Place<T>(i, width, 1));
            const Place<T> middle(2, 5, 1);
            NR_INDEPENDENT
            for (int64_t i = left; i < right; ++i) at(i, middle);
            for (int64_t i = right; i < width; ++i) at(i, Place<T>(i, width, 1));
        }
    });
}

template double bending_loss_forward<float>(const LatticeShape&, const float*, int);
template double bending_loss_forward<double>(const LatticeShape&, const double*, int);
template void bending_loss_backward<float>(const LatticeShape&, double, const float*, float*, int);
template void bending_loss_backward<double>(const LatticeShape&, double, const double*, double*, int);

}  // namespace nr
