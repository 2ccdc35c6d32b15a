// One Adam step on a dense displacement for -lncc(fixed, warped) + regularisation * diffusion, in three
// passes over memory: warp; value and gradient of the similarity with respect to the warped image; then, row
// by row, the image's slope, the diffusion's gradient and Adam, in place. The stencil of the diffusion wants
// old values of neighbours: a thread keeps the plane that it has just overwritten, and beforehand the planes
// on either side of its share. Every voxel sees old values alone, so results do not depend on the number of
// threads.
#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/loops.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/sampling_cells.h"
#include "math/adam.h"

namespace nr {

namespace {

// The lattice of one item, cut along its first axis; a 2-D one is planes of a single row.
template <int ND>
struct Slabs {
    int64_t planes, rows, width, slice, voxels;
    double weight[3];  // of a squared difference along planes, rows, width in the mean; 0 without differences

    explicit Slabs(const std::vector<int64_t>& size)
        : planes(size[0]),
          rows(ND == 3 ? size[1] : 1),
          width(size[ND - 1]),
          slice(rows * width),
          voxels(planes * slice) {
        const int64_t length[3] = {planes, rows, width};
        for (int k = 0; k < 3; ++k) {
            const double differences = static_cast<double>(ND * (voxels / length[k]) * (length[k] - 1));
            weight[k] = differences > 0 ? 1 / (ND * differences) : 0;
        }
    }
};

// d warped / d coordinates times the gradient by the warped image, for one row of voxels.
template <class T, int ND>
void row_slope(const SampleShape& shape, const ImageAxes<ND>& axes, const Source<T, ND>& source,
               const T* moving, const T* by_warped, int64_t row, int64_t width, T* const (&out)[ND]) {
    T x[ND][kBlock], v[1 << ND][kBlock], g[ND][kBlock], upstream[kBlock] = {};
    Cells<T, ND> cells;
    source.walk(row, row + width, [&](const Block<ND>& block) {
        source.locate(block, axes, x);
        find_cells<T, ND>(shape, axes, x, cells);
        for (int k = 0; k < ND; ++k) std::fill_n(g[k], kBlock, T(0));
        for (int64_t c = 0; c < shape.channels; ++c) {
            std::copy_n(by_warped + c * source.points + block.point, block.length, upstream);
            gather<T>(axes, cells, moving + c * axes.voxels, v);
            for (int i = 0; i < kBlock; ++i) {
                T corner[1 << ND], w[ND], d[ND];
                for (int j = 0; j < (1 << ND); ++j) corner[j] = v[j][i];
                for (int k = 0; k < ND; ++k) w[k] = cells.weight[k][i];
                interpolate_gradient(corner, w, d);
                for (int k = 0; k < ND; ++k) g[k][i] += upstream[i] * d[k];
            }
        }
        // What the padding has moved has no gradient, even where the image is not finite.
        for (int k = 0; k < ND; ++k)
            for (int i = 0; i < block.length; ++i)
                out[k][block.point - row + i] = cells.inside[k] || cells.slope[k][i] != 0 ? g[k][i] : T(0);
    });
}

// Old values around a row of one channel; where a neighbour is missing, the row itself stands in.
template <class T>
struct OldRows {
    const T *here, *above, *below, *up, *down;  // here[-1] and here[width] exist
};

// Adds the diffusion's gradient and makes the step in one row; returns the row's share of the diffusion.
template <class T, bool amsgrad>
double row_step(const AdamRule<T>& adam, const double (&weight)[3], double regularisation, int64_t width,
                const OldRows<T>& old, const T* slope, T* u, T* mean, T* square, T* largest) {
    const T wz = static_cast<T>(weight[0]), wy = static_cast<T>(weight[1]), wx = static_cast<T>(weight[2]);
    const T twice = static_cast<T>(2 * regularisation);
    const T *here = old.here, *above = old.above, *below = old.below, *up = old.up, *down = old.down;
    const AdamRule<T> rule = adam;
    double sum = 0;
#if defined(_OPENMP)
#pragma omp simd reduction(+ : sum)
#endif
    for (int64_t i = 0; i < width; ++i) {
        const T c = here[i], x = here[i + 1] - c, y = down[i] - c, z = below[i] - c;
        sum += static_cast<double>(wx * x * x + wy * y * y + wz * z * z);
        const T bend = wx * ((c - here[i - 1]) - x) + wy * ((c - up[i]) - y) + wz * ((c - above[i]) - z);
        T m = mean[i], s = square[i], l = amsgrad ? largest[i] : T(0);
        u[i] = c - adam_step<amsgrad>(rule, slope[i] + twice * bend, m, s, l);
        mean[i] = m;
        square[i] = s;
        if (amsgrad) largest[i] = l;
    }
    return sum;
}

// The third pass over one item; returns the mean squared difference of the old field.
template <class T, int ND, bool amsgrad>
double update(const SampleShape& shape, const RefineRule& rule, const AdamRule<T>& adam, const T* moving,
              const T* by_warped, T* u, T* mean, T* square, T* largest, int threads) {
    const Slabs<ND> s(shape.out);
    const ImageAxes<ND> axes(shape.in);
    const int64_t chunks = std::min<int64_t>(s.planes, std::max(1, threads)), field = ND * s.slice;
    const auto first = [&](int64_t chunk) { return s.planes * chunk / chunks; };
    // Per chunk: the plane before the one at work, then the plane after the chunk, every channel of them.
    std::vector<T> kept(2 * chunks * field);
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int k = 0; k < ND; ++k) {
            T* to = kept.data() + 2 * chunk * field + k * s.slice;
            const T* from = u + k * s.voxels;
            if (chunk > 0) std::copy_n(from + (first(chunk) - 1) * s.slice, s.slice, to);
            if (chunk + 1 < chunks) std::copy_n(from + first(chunk + 1) * s.slice, s.slice, to + field);
        }
    std::vector<double> diffusion(s.planes, 0.0);
    parallel_for(chunks, threads, 1, [&](int64_t begin, int64_t end, int) {
        const Source<T, ND> source(shape, u, nullptr, 0);
        std::vector<T> slopes(ND * s.width), line(s.width + 2);
        T* slope[ND];
        for (int k = 0; k < ND; ++k) slope[k] = slopes.data() + k * s.width;
        T* here = line.data() + 1;
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            T *before = kept.data() + 2 * chunk * field, *after = before + field;
            const int64_t last = first(chunk + 1);
            for (int64_t plane = first(chunk); plane < last; ++plane)
                for (int64_t r = 0; r < s.rows; ++r) {
                    const int64_t inside = r * s.width, row = plane * s.slice + inside;
                    row_slope<T, ND>(shape, axes, source, moving, by_warped, row, s.width, slope);
                    for (int k = 0; k < ND; ++k) {
                        const int64_t at = k * s.voxels + row;
                        T* past = before + k * s.slice + inside;  // of this row, one plane earlier
                        std::copy_n(u + at, s.width, here);
                        here[-1] = here[0];
                        here[s.width] = here[s.width - 1];
                        OldRows<T> old{here, here, here, here, here};
                        if (plane > 0) old.above = past;
                        if (plane + 1 < s.planes)
                            old.below = plane + 1 < last ? u + at + s.slice : after + k * s.slice + inside;
                        if (r > 0) old.up = past - s.width;
                        if (r + 1 < s.rows) old.down = u + at + s.width;
                        diffusion[plane] += row_step<T, amsgrad>(
                            adam, s.weight, rule.regularisation, s.width, old, slope[k], u + at, mean + at,
                            square + at, amsgrad ? largest + at : nullptr);
                        std::copy_n(here, s.width, past);
                    }
                }
        }
    });
    return std::accumulate(diffusion.begin(), diffusion.end(), 0.0);
}

}  // namespace

template <class T>
void refine_step(const SampleShape& sampling, const LnccShape& similarity, const RefineRule& rule,
                 int64_t batch, double t, const T* fixed, const T* moving, T* displacement, T* mean,
                 T* square, T* largest, T* work, double* energy, int threads) {
    int64_t out = 1, in = 1;
    for (int64_t n : sampling.out) out *= n;
    for (int64_t n : sampling.in) in *= n;
    if (out * in == 0) return;
    const int64_t ndim = static_cast<int64_t>(sampling.out.size()), image = sampling.channels * out;
    const AdamRule<T> adam(rule.lr, rule.beta1, rule.beta2, rule.eps, t);
    const auto run = ndim == 2 ? (largest ? update<T, 2, true> : update<T, 2, false>)
                               : (largest ? update<T, 3, true> : update<T, 3, false>);
    T *warped = work, *by_warped = work + image;
    for (int64_t b = 0; b < batch; ++b) {
        const int64_t field = b * ndim * out;
        const T *f = fixed + b * image, *m = moving + b * sampling.channels * in;
        sample_forward<T>(sampling, m, displacement + field, nullptr, warped, nullptr, threads);
        const LnccTotal total = lncc_gradient<T>(similarity, nullptr, -1.0 / static_cast<double>(image), f,
                                                 warped, nullptr, nullptr, by_warped, threads);
        const double diffusion = run(sampling, rule, adam, m, by_warped, displacement + field, mean + field,
                                     square + field, largest ? largest + field : nullptr, threads);
        energy[b] = rule.regularisation * diffusion - total.sum / static_cast<double>(image);
    }
}

#define NR_INSTANTIATE(T)                                                                                  \
    template void refine_step<T>(const SampleShape&, const LnccShape&, const RefineRule&, int64_t, double, \
                                 const T*, const T*, T*, T*, T*, T*, T*, double*, int);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace nr
