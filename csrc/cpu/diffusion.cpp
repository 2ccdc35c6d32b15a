// Mean squared forward differences of a vector field, and the gradient: a weighted Laplacian with free ends.
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
    double weight[3];  // of a squared difference along z, y, x in the loss; 0 along an axis of one voxel

    explicit Grid(const LatticeShape& s) {
        const size_t axes = s.size.size();
        fields = s.batch * s.channels;
        planes = axes == 3 ? s.size[0] : 1;
        rows = s.size[axes - 2];
        width = s.size[axes - 1];
        const double n[3] = {double(planes), double(rows), double(width)};
        const double h[3] = {axes == 3 ? s.spacing[0] : 1, s.spacing[axes - 2], s.spacing[axes - 1]};
        diffusion_weights(double(fields), n, h, static_cast<int>(axes), weight);
    }
    int64_t all_rows() const { return width > 0 ? fields * planes * rows : 0; }
};

}  // namespace

template <class T>
double diffusion_loss_forward(const LatticeShape& shape, const T* u, int threads) {
    const Grid grid(shape);
    const int64_t width = grid.width, slice = grid.rows * width, all = grid.all_rows();
    std::vector<double> partial((all + kRowsPerSum - 1) / kRowsPerSum, 0.0);
    parallel_for(static_cast<int64_t>(partial.size()), threads, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t p = begin; p < end; ++p) {
            for (int64_t r = p * kRowsPerSum; r < std::min(all, (p + 1) * kRowsPerSum); ++r) {
                const int64_t row = r % grid.rows, plane = r / grid.rows % grid.planes;
                const T* here = u + r * width;
                const auto add = [&](const T* next, int64_t n, double weight) {
                    double sum = 0;
#if defined(_OPENMP)
#pragma omp simd reduction(+ : sum)
#endif
                    for (int64_t i = 0; i < n; ++i) {
                        const double difference = static_cast<double>(next[i] - here[i]);
                        sum += difference * difference;
                    }
                    partial[p] += weight * sum;
                };
                if (plane + 1 < grid.planes) add(here + slice, width, grid.weight[0]);
                if (row + 1 < grid.rows) add(here + width, width, grid.weight[1]);
                add(here + 1, width - 1, grid.weight[2]);
            }
        }
    });
    double sum = 0;
    for (double p : partial) sum += p;
    return sum;
}

template <class T>
void diffusion_loss_backward(const LatticeShape& shape, double scale, const T* u, T* grad, int threads) {
    const Grid grid(shape);
    const int64_t width = grid.width, slice = grid.rows * width;
    const T wz = static_cast<T>(2 * scale * grid.weight[0]);
    const T wy = static_cast<T>(2 * scale * grid.weight[1]);
    const T wx = static_cast<T>(2 * scale * grid.weight[2]);
    parallel_for(grid.all_rows(), threads, 64, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
            const int64_t row = r % grid.rows, plane = r / grid.rows % grid.planes;
            const T* here = u + r * width;
            T* to = grad + r * width;
            // A missing neighbour is the voxel itself: difference 0.
            const T* up = row > 0 ? here - width : here;
            const T* down = row + 1 < grid.rows ? here + width : here;
            const T* above = plane > 0 ? here - slice : here;
            const T* below = plane + 1 < grid.planes ? here + slice : here;
            const auto at = [&](int64_t i, int64_t left, int64_t right) __attribute__((always_inline)) {
                const T c = here[i];
                to[i] = wx * ((c - here[left]) - (here[right] - c)) + wy * ((c - up[i]) - (down[i] - c)) +
                        wz * ((c - above[i]) - (below[i] - c));
            };
            at(0, 0, std::min<int64_t>(1, width - 1));
            NR_INDEPENDENT
            for (int64_t i = 1; i < width - 1; ++i) at(i, i - 1, i + 1);
            if (width > 1) at(width - 1, width - 2, width - 1);
        }
    });
}

template double diffusion_loss_forward<float>(const LatticeShape&, const float*, int);
template double diffusion_loss_forward<double>(const LatticeShape&, const double*, int);
template void diffusion_loss_backward<float>(const LatticeShape&, double, const float*, float*, int);
template void diffusion_loss_backward<double>(const LatticeShape&, double, const double*, double*, int);

}  // namespace nr
