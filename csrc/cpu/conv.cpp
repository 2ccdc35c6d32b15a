// Two convolutions with 3 taps an axis and a ReLU between them. Tiles of rows run along the planes and keep
// the hidden channels of three planes only; the backward pass computes them again. Every output is a gather,
// and the weights' gradients are summed tile by tile in one order, whatever the number of threads.
#include <array>

#include "cpu/conv_lines.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "math/activation.h"

namespace nr {

namespace {

constexpr int64_t kTilePlanes = 24;
constexpr int64_t kTileVoxels = 1280;  // of a plane of a tile: 32 channels of three planes fit a second cache
constexpr int64_t kLeast = 8;          // rows of a tile

// 2-D is 3-D with one plane, where no tap reaches another plane.
struct Volume {
    int64_t planes, rows, width, reach;  // reach: planes on either side that taps read

    explicit Volume(const ConvShape& s)
        : planes(s.size.size() == 3 ? s.size[0] : 1),
          rows(s.size[s.size.size() - 2]),
          width(s.size.back()),
          reach(s.size.size() == 3 ? 1 : 0) {}
    int64_t depth() const { return 2 * reach + 1; }
    int taps(int64_t channels) const { return static_cast<int>(9 * depth() * channels); }
    int64_t voxels() const { return planes * rows * width; }
};

// Tap t counts planes, then channels, then rows and columns; a weight is found in (outputs, channels,
// *kernel).
struct TapPlace {
    int64_t channel, place;

    TapPlace(int64_t channels, int t) : channel(t / 9 % channels), place(t / (9 * channels) * 9 + t % 9) {}
};

// The planes of a tile that are in use, in a ring: channels x rows, every row with a zero at both ends.
template <class T>
class Ring {
public:
    Ring(int64_t slots, int64_t channels, int64_t rows, const Volume& volume)
        : volume_(volume),
          slots_(slots),
          channels_(channels),
          rows_(rows),
          width_(volume.width + 2),
          line_(whole_blocks<T>(rows * width_) + Simd<T>::lanes),
          data_(kLead + slots * channels * line_ + 3 * width_ + whole_blocks<T>(1), T(0)) {}

    int64_t width() const { return width_; }
    int64_t line() const { return line_; }
    int64_t used() const { return rows_ * width_; }
    T* plane(int64_t z) { return data_.data() + kLead + slot(z) * channels_ * line_; }

    // Copies plane z of a volume (channels, planes, rows, width), rows from y on; zeros beyond it.
    void read(const T* volume, int64_t z, int64_t y) {
        const bool inside = z >= 0 && z < volume_.planes;
        for (int64_t c = 0; c < channels_; ++c) {
            T* to = plane(z) + c * line_;
            for (int64_t r = 0; r < rows_; ++r, to += width_) {
                if (inside && y + r >= 0 && y + r < volume_.rows) {
                    const T* from =
                        volume + ((c * volume_.planes + z) * volume_.rows + y + r) * volume_.width;
                    std::copy(from, from + volume_.width, to + 1);
                    to[0] = to[width_ - 1] = T(0);
                } else {
                    std::fill(to, to + width_, T(0));
                }
            }
        }
    }
    // Zeros where plane z, rows from y on, lies beyond the volume, and at the ends of the rows.
    void clear_outside(int64_t z, int64_t y) {
        const bool inside = z >= 0 && z < volume_.planes;
        for (int64_t c = 0; c < channels_; ++c) {
            T* to = plane(z) + c * line_;
            for (int64_t r = 0; r < rows_; ++r, to += width_) {
                if (inside && y + r >= 0 && y + r < volume_.rows)
                    to[0] = to[width_ - 1] = T(0);
                else
                    std::fill(to, to + width_, T(0));
            }
        }
    }
    // Where the taps of a convolution with its middle in plane z read, from plane(0) on: a line's first
    // result has its middle one row further.
    std::vector<int64_t> offsets(int64_t z, int64_t channels) const {
        std::vector<int64_t> found;
        for (int64_t dz = -volume_.reach; dz <= volume_.reach; ++dz)
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t dy = 0; dy < 3; ++dy)
                    for (int64_t dx = -1; dx < 2; ++dx)
                        found.push_back((slot(z + dz) * channels_ + c) * line_ + dy * width_ + dx);
        return found;
    }

private:
    static constexpr int64_t kLead = 64 / sizeof(T);  // the first tap reads one element before

    int64_t slot(int64_t z) const { return (z + slots_) % slots_; }

    Volume volume_;
    int64_t slots_, channels_, rows_, width_, line_;
    AlignedVector<T> data_;
};

struct Tile {
    int64_t item, z0, z1, y0, y1;
};

std::vector<Tile> tiles(const ConvShape& shape, const Volume& v) {
    std::vector<Tile> found;
    if (v.voxels() == 0) return found;
    const int64_t rows = std::max(kLeast, kTileVoxels / (v.width + 2));
    for (int64_t item = 0; item < shape.batch; ++item)
        for (int64_t z = 0; z < v.planes; z += kTilePlanes)
            for (int64_t y = 0; y < v.rows; y += rows)
                found.push_back(
                    {item, z, std::min(z + kTilePlanes, v.planes), y, std::min(y + rows, v.rows)});
    return found;
}

int few_or_many(int64_t outputs) { return outputs > kFew ? kMany : kFew; }

template <class T>
Taps<T> forward_taps(const Volume& v, int block, int64_t outputs, int64_t channels, const T* weight,
                     const T* bias) {
    const int64_t kernel = 9 * v.depth();
    return Taps<T>(
        outputs, v.taps(channels), block,
        [=](int o, int t) {
            const TapPlace at(channels, t);
            return weight[(o * channels + at.channel) * kernel + at.place];
        },
        [=](int o) { return bias[o]; });
}

// The adjoint: from the outputs' gradient to the channels', with the kernel turned round.
template <class T>
Taps<T> adjoint_taps(const Volume& v, int block, int64_t outputs, int64_t channels, const T* weight) {
    const int64_t kernel = 9 * v.depth();
    return Taps<T>(
        channels, v.taps(outputs), block,
        [=](int c, int t) {
            const TapPlace at(outputs, t);
            return weight[(at.channel * channels + c) * kernel + kernel - 1 - at.place];
        },
        [](int) { return T(0); });
}

// The hidden channels of plane z, rows from y on, behind the ReLU.
template <class T>
void hidden_plane(const Taps<T>& first, Ring<T>& x, int64_t channels, Ring<T>& hidden, int64_t z, int64_t y) {
    const std::vector<int64_t> offsets = x.offsets(z, channels);
    T* to = hidden.plane(z);
    convolve_lines(first, x.plane(0), offsets.data(), to, hidden.line(), hidden.used());
    for (int64_t i = 0; i < first.outputs * hidden.line(); ++i) to[i] = relu(to[i]).value;
    hidden.clear_outside(z, y);
}

// Rows from y0 on of plane z of a volume (channels, planes, rows, width), from lines.
template <class T>
void write_rows(const Volume& v, const Tile& tile, int64_t z, int64_t channels, Ring<T>& lines, T* volume) {
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t y = tile.y0; y < tile.y1; ++y) {
            const T* from = lines.plane(0) + c * lines.line() + (y - tile.y0) * lines.width() + 1;
            std::copy(from, from + v.width, volume + ((c * v.planes + z) * v.rows + y) * v.width);
        }
}

// Gradients of the parameters, in double, one set a tile.
struct Sums {
    std::vector<double> first, first_bias, second, second_bias;  // weights [hidden][tap]

    Sums(int64_t hidden, int64_t first_taps, int64_t second_taps, int64_t out)
        : first(hidden * first_taps), first_bias(hidden), second(hidden * second_taps), second_bias(out) {}
};

// Adds the sum of every channel's rows [1, rows + 1) of a plane, or [2, rows + 2): those of the tile.
template <class T>
void add_rows(Ring<T>& ring, int64_t z, int64_t channels, int64_t first_row, int64_t rows,
              std::vector<double>& sums) {
    for (int64_t c = 0; c < channels; ++c) {
        const T* from = ring.plane(z) + c * ring.line() + first_row * ring.width();
        double sum = 0;
        for (int64_t i = 0; i < rows * ring.width(); ++i) sum += from[i];
        sums[c] += sum;
    }
}

}  // namespace

template <class T>
void conv_relu_conv_forward(const ConvShape& shape, const T* x, const T* w1, const T* b1, const T* w2,
                            const T* b2, T* y, int threads) {
    const Volume v(shape);
    const Taps<T> first = forward_taps(v, kMany, shape.hidden, shape.in, w1, b1);
    const Taps<T> second = forward_taps(v, few_or_many(shape.out), shape.out, shape.hidden, w2, b2);
    const std::vector<Tile> jobs = tiles(shape, v);
    parallel_jobs(static_cast<int64_t>(jobs.size()), threads, [&](int64_t job) {
        const Tile& tile = jobs[job];
        const int64_t rows = tile.y1 - tile.y0;
        const T* image = x + tile.item * shape.in * v.voxels();
        Ring<T> in(v.depth(), shape.in, rows + 4, v), hidden(v.depth(), first.outputs, rows + 2, v);
        Ring<T> out(1, second.outputs, rows, v);
        for (int64_t z = tile.z0 - 2 * v.reach; z < tile.z0; ++z) in.read(image, z, tile.y0 - 2);
        for (int64_t z = tile.z0 - v.reach; z < tile.z1 + v.reach; ++z) {
            in.read(image, z + v.reach, tile.y0 - 2);
            if (z >= 0 && z < v.planes)
                hidden_plane(first, in, shape.in, hidden, z, tile.y0 - 1);
            else
                hidden.clear_outside(z, 0);
            const int64_t done = z - v.reach;
            if (done < tile.z0) continue;
            const std::vector<int64_t> offsets = hidden.offsets(done, shape.hidden);
            convolve_lines(second, hidden.plane(0), offsets.data(), out.plane(0), out.line(), out.used());
            write_rows(v, tile, done, shape.out, out, y + tile.item * shape.out * v.voxels());
        }
    });
}

template <class T>
void conv_relu_conv_backward(const ConvShape& shape, const T* grad_y, const T* x, const T* w1, const T* b1,
                             const T* w2, T* grad_x, const std::array<T*, 4>& grad_parameters, int threads) {
    const Volume v(shape);
    const Taps<T> first = forward_taps(v, kMany, shape.hidden, shape.in, w1, b1);
    const Taps<T> to_hidden = adjoint_taps(v, kMany, shape.out, shape.hidden, w2);
    const Taps<T> to_in = adjoint_taps(v, few_or_many(shape.in), shape.hidden, shape.in, w1);
    const bool sums_wanted =
        std::any_of(grad_parameters.begin(), grad_parameters.end(), [](const T* p) { return p != nullptr; });
    const std::vector<Tile> jobs = tiles(shape, v);
    std::vector<Sums> sums(sums_wanted ? jobs.size() : 0,
                           Sums(first.outputs, first.count, to_hidden.count, shape.out));
    parallel_jobs(static_cast<int64_t>(jobs.size()), threads, [&](int64_t job) {
        const Tile& tile = jobs[job];
        const int64_t rows = tile.y1 - tile.y0;
        const T* image = x + tile.item * shape.in * v.voxels();
        const T* upstream = grad_y + tile.item * shape.out * v.voxels();
        Ring<T> in(v.depth(), shape.in, rows + 4, v), up(v.depth(), shape.out, rows + 4, v);
        Ring<T> hidden(1, first.outputs, rows + 2, v), grad(v.depth(), first.outputs, rows + 2, v);
        Ring<T> result(1, to_in.outputs, rows, v);
        const auto read = [&](int64_t z) {
            in.read(image, z, tile.y0 - 2);
            up.read(upstream, z, tile.y0 - 2);
        };
        for (int64_t z = tile.z0 - 2 * v.reach; z < tile.z0; ++z) read(z);
        for (int64_t z = tile.z0 - v.reach; z < tile.z1 + v.reach; ++z) {
            read(z + v.reach);
            if (z >= 0 && z < v.planes) {
                hidden_plane(first, in, shape.in, hidden, z, tile.y0 - 1);
                const std::vector<int64_t> offsets = up.offsets(z, shape.out);
                T* g = grad.plane(z);
                convolve_lines(to_hidden, up.plane(0), offsets.data(), g, grad.line(), grad.used());
                const T* h = hidden.plane(z);
                for (int64_t i = 0; i < first.outputs * grad.line(); ++i) g[i] = h[i] > 0 ? g[i] : T(0);
                grad.clear_outside(z, tile.y0 - 1);
            } else {
                grad.clear_outside(z, 0);
            }
            if (sums_wanted && z >= tile.z0 && z < tile.z1) {
                const int64_t row = grad.width();
                const std::vector<int64_t> at_in = in.offsets(z, shape.in), at_up = up.offsets(z, shape.out);
                correlate_lines(first.outputs, grad.plane(z) + row, grad.line(), first.count,
                                in.plane(0) + row, at_in.data(), rows * row, sums[job].first.data());
                correlate_lines(first.outputs, hidden.plane(z) + row, hidden.line(), to_hidden.count,
                                up.plane(0) + row, at_up.data(), rows * row, sums[job].second.data());
                add_rows(grad, z, shape.hidden, 1, rows, sums[job].first_bias);
                add_rows(up, z, shape.out, 2, rows, sums[job].second_bias);
            }
            const int64_t done = z - v.reach;
            if (grad_x == nullptr || done < tile.z0) continue;
            const std::vector<int64_t> offsets = grad.offsets(done, shape.hidden);
            convolve_lines(to_in, grad.plane(0), offsets.data(), result.plane(0), result.line(),
                           result.used());
            write_rows(v, tile, done, shape.in, result, grad_x + tile.item * shape.in * v.voxels());
        }
    });
    if (!sums_wanted) return;
    Sums total(first.outputs, first.count, to_hidden.count, shape.out);
    const auto add = [](std::vector<double>& to, const std::vector<double>& from) {
        for (size_t i = 0; i < to.size(); ++i) to[i] += from[i];
    };
    for (const Sums& part : sums) {
        add(total.first, part.first);
        add(total.first_bias, part.first_bias);
        add(total.second, part.second);
        add(total.second_bias, part.second_bias);
    }
    const auto [grad_w1, grad_b1, grad_w2, grad_b2] = grad_parameters;
    const int64_t kernel = 9 * v.depth();
    for (int64_t c = 0; c < shape.hidden; ++c) {
        for (int t = 0; grad_w1 && t < first.count; ++t) {
            const TapPlace at(shape.in, t);
            grad_w1[(c * shape.in + at.channel) * kernel + at.place] =
                static_cast<T>(total.first[c * first.count + t]);
        }
        for (int t = 0; grad_w2 && t < to_hidden.count; ++t) {
            const TapPlace at(shape.out, t);
            grad_w2[(at.channel * shape.hidden + c) * kernel + kernel - 1 - at.place] =
                static_cast<T>(total.second[c * to_hidden.count + t]);
        }
        if (grad_b1) grad_b1[c] = static_cast<T>(total.first_bias[c]);
    }
    for (int64_t o = 0; grad_b2 && o < shape.out; ++o) grad_b2[o] = static_cast<T>(total.second_bias[o]);
}

template void conv_relu_conv_forward<float>(const ConvShape&, const float*, const float*, const float*,
                                            const float*, const float*, float*, int);
template void conv_relu_conv_forward<double>(const ConvShape&, const double*, const double*, const double*,
                                             const double*, const double*, double*, int);
template void conv_relu_conv_backward<float>(const ConvShape&, const float*, const float*, const float*,
                                             const float*, const float*, float*, const std::array<float*, 4>&,
                                             int);
template void conv_relu_conv_backward<double>(const ConvShape&, const double*, const double*, const double*,
                                              const double*, const double*, double*,
                                              const std::array<double*, 4>&, int);

}  // namespace nr
