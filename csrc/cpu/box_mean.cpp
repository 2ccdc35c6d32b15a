// Box means, streamed: the sums of a box, over the voxels of it that are inside the image. The adjoint
// streams the quotients of gradient and number of voxels through the mirrored boxes.
#include "cpu/box_mean.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/box_items.h"
#include "cpu/box_stream.h"
#include "cpu/parallel.h"
#include "math/box.h"

namespace nr {

namespace {

// One axis of the boxes around the voxels of an image.
struct MeanAxis {
    BoxAxis box;
    std::vector<double> inverse;  // 1 / number of voxels inside, of every box; zeros up to a whole vector

    MeanAxis(int64_t n, int64_t window)
        : box(n, n, (window - 1) / 2, window / 2), inverse(padded<double>(n), 0.0) {
        for (int64_t i = 0; i < n; ++i)
            inverse[i] = 1 / static_cast<double>(voxels_inside(n, i, box.before, box.after));
    }
};

struct MeanBoxes {
    MeanAxis z, y, x;

    explicit MeanBoxes(const BoxShape& s)
        : z(s.size.size() == 3 ? axis(s, 0) : MeanAxis(1, 1)),
          y(axis(s, s.size.size() - 2)),
          x(axis(s, s.size.size() - 1)) {}
    int64_t voxels() const { return z.box.in * y.box.in * x.box.in; }

private:
    static MeanAxis axis(const BoxShape& s, size_t k) { return {s.size[k], s.window[k]}; }
};

// guarded: values that are not finite are read as zeros, and counted in a field of their own.
template <class T, bool adjoint, bool guarded>
struct ReadVoxels {
    static constexpr int kFields = guarded ? 2 : 1;
    const T* image;
    const MeanBoxes& boxes;

    inline __attribute__((always_inline)) void operator()(int64_t plane, int64_t row, int64_t block,
                                                          Wide::Vec* v) const {
        const int64_t width = boxes.x.box.in, x = block * Wide::lanes;
        Wide::Vec value = load_wide(image + (plane * boxes.y.box.in + row) * width + x, width - x);
        if (guarded) {
            const auto finite = value - value == 0;
            v[kFields - 1] = finite ? Wide::Vec{} : Wide::Vec{} + 1;
            value = finite ? value : Wide::Vec{};
        }
        if (adjoint)
            value *= boxes.z.inverse[plane] * boxes.y.inverse[row] * Wide::load(boxes.x.inverse.data() + x);
        v[0] = value;
    }
};

// Streams strips of one channel after the other; one a thread.
template <class T, bool adjoint, bool guarded>
class Means {
    using Read = ReadVoxels<T, adjoint, guarded>;

public:
    static int64_t strip(const MeanBoxes& b) { return BoxStream<1>::strip(b.y.box, b.x.box); }

    Means(const MeanBoxes& boxes, int64_t rows)
        : boxes_(boxes),
          stream_(sides(boxes.z.box), sides(boxes.y.box), sides(boxes.x.box), rows),
          scale_(boxes.x.inverse.begin(), boxes.x.inverse.begin() + boxes.x.box.in) {}

    // False where values that are not finite have spoiled running sums, and with them the output.
    bool run(int64_t z0, int64_t z1, int64_t y0, int64_t y1, const T* image, T* out) {
        const int64_t n = boxes_.x.box.in, rows = boxes_.y.box.in;
        double most = 0;  // largest sum so far
        bool finite = true;
        stream_.restart();
        stream_.run(z0, z1, y0, y1, Read{image, boxes_}, [&](int64_t plane, int64_t row, const double* sums) {
            const double least = kRoundingShare * most;
            const double per_row = adjoint ? 1.0 : boxes_.z.inverse[plane] * boxes_.y.inverse[row];
            const double* spoiled = sums + (Read::kFields - 1) * stream_.stride();
            const double* across = scale_.data();
            T* to = out + (plane * rows + row) * n;
            double check = 0;
            for (int64_t i = 0; i < n; ++i) {
                const double s = sums[i], kept = std::abs(s) <= least ? 0.0 : s;
                double mean = adjoint ? kept : kept * (per_row * across[i]);
                if (guarded) mean = spoiled[i] < 0.5 ? mean : std::numeric_limits<double>::quiet_NaN();
                to[i] = static_cast<T>(mean);
            }
            if (!guarded) {
                for (int64_t i = 0; i < n; ++i) check += 0 * sums[i];
                finite = finite && check == 0;
            }
            const Range range = range_of(sums, n);
            most = std::max({most, -range.low, range.high});
        });
        return finite;
    }

private:
    static BoxAxis sides(const BoxAxis& box) { return adjoint ? box.adjoint() : box; }

    const MeanBoxes& boxes_;
    BoxStream<Read::kFields> stream_;
    std::vector<double> scale_;
};

template <class T, bool adjoint>
void run(const BoxShape& shape, const T* image, T* out, int threads) {
    const MeanBoxes boxes(shape);
    const int64_t rows = Means<T, adjoint, false>::strip(boxes), voxels = boxes.voxels();
    const BoxItems items(rows, boxes.y.box.in, boxes.z.box.in);
    parallel_for(shape.channels * items.count(), threads, 1, [&](int64_t begin, int64_t end, int) {
        Means<T, adjoint, false> means(boxes, rows);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t at = i / items.count() * voxels, item = i % items.count();
            const int64_t z0 = items.z0(item), z1 = items.z1(item), y0 = items.y0(item), y1 = items.y1(item);
            if (means.run(z0, z1, y0, y1, image + at, out + at)) continue;
            Means<T, adjoint, true>(boxes, rows).run(z0, z1, y0, y1, image + at, out + at);
        }
    });
}

}  // namespace

template <class T>
void box_mean(const BoxShape& shape, const T* image, T* out, int threads) {
    int64_t size = shape.channels;
    for (int64_t n : shape.size) size *= n;
    if (size == 0) return;
    (shape.adjoint ? run<T, true> : run<T, false>)(shape, image, out, threads);
}

template void box_mean<float>(const BoxShape&, const float*, float*, int);
template void box_mean<double>(const BoxShape&, const double*, double*, int);

}  // namespace nr
