// Box sums of several fields over a volume, streamed: cost independent of the window, no buffer of volume
// size.
//
// A strip of rows walks down the planes. Along y and z a box sum is the difference of two running sums, one
// fed with the entering and one with the leaving entries in the same order; where a window holds only zeros
// both have received the same numbers, so its sum is exactly zero and the rounding of what came before leaves
// no trace. Along x sums of 4, 16, ... entries are put together. All sums are float64: products of float32
// numbers are exact, and what the running sums lose is far below a float32 rounding, also at large offsets.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/loops.h"
#include "cpu/simd.h"

namespace nr {

using Wide = Simd<double>;

// Output o sums the inputs o - before ... o + after that exist.
struct BoxAxis {
    int64_t in, out, before, after;

    BoxAxis(int64_t in, int64_t out, int64_t before, int64_t after)
        : in(in), out(out), before(std::min(before, out - 1)), after(std::min(after, in - 1)) {}
    int64_t window() const { return before + 1 + after; }
    BoxAxis adjoint() const { return {out, in, after, before}; }
};

template <class T, std::size_t... I>
inline typename Wide::Vec widen(const T* p, std::index_sequence<I...>) {
    return typename Wide::Vec{static_cast<double>(p[I])...};  // one converting load
}

template <class T>
__attribute__((noinline)) typename Wide::Vec load_part(const T* p, int64_t n) {
    typename Wide::Vec v{};
    for (int64_t i = 0; i < n; ++i) v[i] = static_cast<double>(p[i]);
    return v;
}

// The first n of `lanes` elements, converted to float64; zeros after them.
template <class T>
inline typename Wide::Vec load_wide(const T* p, int64_t n) {
    if (n < Wide::lanes) return load_part(p, n);
    return widen(p, std::make_index_sequence<Wide::lanes>());
}

// r[j] = q[j] + ... + q[j + window - 1] for j < n; scratch holds n + window elements.
inline void box_row(const double* q, int64_t n, int64_t window, double* scratch, double* r) {
    int64_t length = n + window - 1, offset = 0;
    bool first = true;
    for (int64_t step = 1;; step *= 4) {
        const int64_t digit = window & 3;
        const double* a = q + offset;
        const double *b = a + step, *c = b + step;
        if (digit == 1) {
            NR_INDEPENDENT
            for (int64_t j = 0; j < n; ++j) r[j] = (first ? 0.0 : r[j]) + a[j];
        } else if (digit == 2) {
            NR_INDEPENDENT
            for (int64_t j = 0; j < n; ++j) r[j] = (first ? 0.0 : r[j]) + (a[j] + b[j]);
        } else if (digit == 3) {
            NR_INDEPENDENT
            for (int64_t j = 0; j < n; ++j) r[j] = (first ? 0.0 : r[j]) + (a[j] + b[j] + c[j]);
        }
        first = first && digit == 0;
        offset += digit * step;
        window >>= 2;
        if (window == 0) return;
        length -= 3 * step;
        // In place from the second round on: an entry is read before the loop arrives and overwrites it.
        NR_INDEPENDENT
        for (int64_t j = 0; j < length; ++j)
            scratch[j] = (q[j] + q[j + step]) + (q[j + 2 * step] + q[j + 3 * step]);
        q = scratch;
    }
}

// One thread's buffers for boxes of F fields; strips have at most `rows` rows of output.
template <int F>
class BoxStream {
public:
    using Vec = typename Wide::Vec;

    BoxStream(const BoxAxis& z, const BoxAxis& y, const BoxAxis& x, int64_t rows)
        : z_(z),
          y_(y),
          x_(x),
          blocks_((x.in + Wide::lanes - 1) / Wide::lanes),
          line_(std::max(x.before + blocks_ * Wide::lanes, x.out + x.window())),
          entered_(blocks_ * rows * F),
          left_(blocks_ * rows * F),
          column_((rows + y.window()) * F),
          lines_(rows * F * line_),
          scratch_(x.out + x.window()),
          sums_(F * x.out) {}

    // Rows of output a strip should have, so that its running sums stay in a level-2 cache of a megabyte. It
    // depends on the shape alone, so that results do not depend on the number of threads.
    static int64_t strip(const BoxAxis& y, const BoxAxis& x) {
        const int64_t row = (2 * x.in + x.out) * F * static_cast<int64_t>(sizeof(double));
        const int64_t wanted =
            std::max<int64_t>((int64_t{640} << 10) / std::max<int64_t>(row, 1), y.window());
        const int64_t rows = std::min(y.out, std::min<int64_t>(64, std::max<int64_t>(16, wanted)));
        const int64_t strips = (y.out + rows - 1) / rows;
        return (y.out + strips - 1) / strips;
    }

    // Calls emit(plane, row, sums) for planes [z0, z1) and rows [y0, y1) of output, where sums[k * x.out + i]
    // is the box sum of field k; read(plane, row, block, v) delivers F vectors of input.
    template <class Read, class Emit>
    void run(int64_t z0, int64_t z1, int64_t y0, int64_t y1, const Read& read, const Emit& emit) {
        std::fill(entered_.begin(), entered_.end(), Vec{});
        std::fill(left_.begin(), left_.end(), Vec{});
        const int64_t rows = y1 - y0;
        int64_t entering = std::max<int64_t>(0, z0 - z_.before), leaving = entering;
        for (int64_t plane = z0; plane < z1; ++plane) {
            const int64_t entered = std::min(z_.in, plane + z_.after + 1);
            const int64_t left = std::min(entered, plane - z_.before);
            for (int64_t block = 0; block < blocks_; ++block) {
                Vec* in = entered_.data() + block * rows * F;
                Vec* out = left_.data() + block * rows * F;
                for (int64_t p = entering; p < entered; ++p) add_plane(p, y0, y1, block, read, in);
                for (int64_t p = leaving; p < left; ++p) add_plane(p, y0, y1, block, read, out);
                double* line = lines_.data() + x_.before + block * Wide::lanes;
                for (int64_t i = 0; i < rows * F; ++i) Wide::store(line + i * line_, in[i] - out[i]);
            }
            entering = std::max(entering, entered);
            leaving = std::max(leaving, left);
            for (int64_t row = 0; row < rows; ++row) {
                for (int k = 0; k < F; ++k)
                    box_row(lines_.data() + (row * F + k) * line_, x_.out, x_.window(), scratch_.data(),
                            sums_.data() + k * x_.out);
                emit(plane, y0 + row, sums_.data());
            }
        }
    }

private:
    // Adds the y boxes of one column block of one plane. The fields go through memory, so that the entering
    // and the leaving side add the very same numbers whatever the compiler contracts.
    template <class Read>
    void add_plane(int64_t plane, int64_t y0, int64_t y1, int64_t block, const Read& read,
                   Vec* __restrict to) {
        const int64_t first = std::max<int64_t>(0, y0 - y_.before), last = std::min(y_.in, y1 + y_.after);
        for (int64_t row = first; row < last; ++row)
            read(plane, row, block, column_.data() + (row - first) * F);
        const Vec* v = column_.data();
        const int64_t end = last - first;
        int64_t entering = 0, leaving = 0;
        Vec entered[F] = {}, left[F] = {};
        for (int64_t row = y0 - first; row < y1 - first; ++row, to += F) {
            for (const int64_t stop = std::min(end, row + y_.after + 1); entering < stop; ++entering)
                for (int k = 0; k < F; ++k) entered[k] += v[entering * F + k];
            for (const int64_t stop = std::min(end, row - y_.before); leaving < stop; ++leaving)
                for (int k = 0; k < F; ++k) left[k] += v[leaving * F + k];
            for (int k = 0; k < F; ++k) to[k] += entered[k] - left[k];
        }
    }

    BoxAxis z_, y_, x_;
    int64_t blocks_, line_;            // vectors in a row of input; length of a padded line
    std::vector<Vec> entered_, left_;  // [block][row][field]
    std::vector<Vec> column_;          // [row][field] of one block, one plane
    std::vector<double> lines_;        // [row][field][line], zeros before and after the row
    std::vector<double> scratch_, sums_;
};

}  // namespace nr
