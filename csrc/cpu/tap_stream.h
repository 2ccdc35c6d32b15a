// Weighted sums of several fields in separable windows, streamed through a volume: the counterpart of
// BoxStream for windows whose weights differ, so that every tap is a multiplication. No buffer of volume
// size; sums are float64.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/box_stream.h"
#include "cpu/simd.h"

namespace nr {

// Output o sums weights[t] times input o - before + t, for the inputs that exist.
struct TapAxis {
    int64_t in, out, before;
    std::vector<double> weights;

    int64_t taps() const { return static_cast<int64_t>(weights.size()); }
    TapAxis adjoint() const {
        return {out, in, taps() - 1 - before, std::vector<double>(weights.rbegin(), weights.rend())};
    }
    // The taps of output o that read an input.
    std::pair<int64_t, int64_t> range(int64_t o) const {
        return {std::max<int64_t>(0, before - o), std::min(taps(), in + before - o)};
    }
};

// One thread's buffers for windows over F fields; strips have at most `rows` rows of output.
template <int F>
class TapStream {
public:
    using Vec = typename Wide::Vec;

    TapStream(const TapAxis& z, const TapAxis& y, const TapAxis& x, int64_t rows)
        : z_(z),
          y_(y),
          x_(x),
          blocks_((x.in + Wide::lanes - 1) / Wide::lanes),
          count_((x.out + Wide::lanes - 1) / Wide::lanes),
          start_(padded<double>(x.before)),
          line_(padded<double>(
              std::max(start_ + blocks_ * Wide::lanes, start_ - x.before + count_ * Wide::lanes + x.taps()))),
          depth_((rows + y.taps()) * F * line_ / Wide::lanes),
          across_(F * line_ / Wide::lanes),
          sums_(F * count_) {}

    // Where the sums of one field stand after those of the one before.
    int64_t stride() const { return count_ * Wide::lanes; }

    // Rows of output a strip should have: few, as its input rows are read again for every tap along z, and
    // enough for those to be many against the rows around them.
    static int64_t strip(const TapAxis& y) {
        return std::min<int64_t>(y.out, std::max<int64_t>(16, y.taps()));
    }

    // Calls emit(plane, row, sums) for planes [z0, z1) and rows [y0, y1) of output, where sums[k * stride() +
    // i] is the weighted sum of field k; read(plane, row, block, v) delivers F vectors of input.
    template <class Read, class Emit>
    void run(int64_t z0, int64_t z1, int64_t y0, int64_t y1, const Read& read, const Emit& emit) {
        const int64_t top = std::max<int64_t>(0, y0 - y_.before);
        const int64_t bottom = std::min(y_.in, y1 - 1 - y_.before + y_.taps());
        for (int64_t plane = z0; plane < z1; ++plane) {
            for (int64_t row = top; row < bottom; ++row) sum_depth(plane, row, line(row - top), read);
            for (int64_t row = y0; row < y1; ++row) {
                sum_rows(row, top);
                for (int k = 0; k < F; ++k)
                    sum_line(reinterpret_cast<const double*>(across_.data()) + k * line_ + start_ - x_.before,
                             sums_.data() + k * count_);
                emit(plane, row, reinterpret_cast<const double*>(sums_.data()));
            }
        }
    }

private:
    template <class Read>
    void sum_depth(int64_t plane, int64_t row, Vec* to, const Read& read) const {
        const auto [first, last] = z_.range(plane);
        for (int64_t block = 0; block < blocks_; ++block) {
            Vec sum[F] = {};
            for (int64_t t = first; t < last; ++t) {
                Vec v[F];
                read(plane - z_.before + t, row, block, v);
                for (int k = 0; k < F; ++k) sum[k] += z_.weights[t] * v[k];
            }
            for (int k = 0; k < F; ++k) to[(k * line_ + start_) / Wide::lanes + block] = sum[k];
        }
    }

    void sum_rows(int64_t row, int64_t top) {
        const auto [first, last] = y_.range(row);
        const int64_t n = across_.size();
        for (int64_t i = 0; i < n; ++i) {
            Vec sum{};
            for (int64_t t = first; t < last; ++t) sum += y_.weights[t] * line(row - y_.before + t - top)[i];
            across_[i] = sum;
        }
    }

    void sum_line(const double* q, Vec* to) const {
        const int64_t taps = x_.taps();
        for (int64_t i = 0; i < count_; ++i) {
            Vec sum{};
            for (int64_t t = 0; t < taps; ++t) sum += x_.weights[t] * Wide::load(q + i * Wide::lanes + t);
            to[i] = sum;
        }
    }

    Vec* line(int64_t row) { return depth_.data() + row * F * line_ / Wide::lanes; }

    TapAxis z_, y_, x_;
    int64_t blocks_, count_, start_, line_;  // vectors of input and of sums in a row; padded line of input
    std::vector<Vec> depth_;          // [row][field][line]: sums along z, zeros before and after the row
    std::vector<Vec> across_, sums_;  // of those along y; of those along x
};

}  // namespace nr
