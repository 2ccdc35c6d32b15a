// Box sums of several fields over a volume, streamed: cost independent of the window, no buffer of volume
// size.
//
// A strip of rows walks down the planes. Along z every entry of the strip keeps a running sum, to which the
// plane that enters is added and from which the plane that leaves, computed again, is subtracted; along y one
// running line does the same with those sums; along x sums of 4, 16, ... entries are put together. All sums
// are float64: products of float32 numbers are exact, and what the running sums lose is far below a float32
// rounding, also at large offsets. Where bright entries have passed, a window of zeros keeps their rounding
// instead of an exact zero; kRoundingShare tells such sums from others.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
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

// Sums of `window` entries in a row, r[j] = q[j] + ... + q[j + window - 1], for `count` vectors of r. Sums of
// 2, 4 and 8 neighbours come from sums of half as many; a window is whole vectors and a remainder, and only
// registers are slid, never memory. q holds count + window / lanes + kAhead vectors; `whole` is scratch for
// as many.
constexpr int kAhead = 4;

template <int rest>
void box_line(const Wide::Vec* q, int64_t count, int64_t wholes, Wide::Vec* whole, Wide::Vec* r) {
    using Vec = Wide::Vec;
    constexpr int lanes = Wide::lanes;
    // Names count back from the newest vector: one1 is the vector before one0.
    Vec one0{}, one1{}, one2{}, one3{}, two1{}, two2{}, two3{}, four2{}, four3{}, before{};
    const int64_t end = count + wholes;
    const int64_t delay = lanes == 8 ? 3 : lanes == 4 ? 2 : 1;
    for (int64_t t = 0; t < end + delay; ++t) {
        one3 = one2;
        one2 = one1;
        one1 = one0;
        one0 = q[t];
        two3 = two2;
        two2 = two1;
        two1 = one1 + slide<1>(one1, one0);
        Vec all, part{};
        if constexpr (lanes == 8) {
            four3 = four2;
            four2 = two2 + slide<2>(two2, two1);
            all = four3 + slide<4>(four3, four2);
            if constexpr (rest & 4) part = four3;
            if constexpr (rest & 2) part += rest & 4 ? slide<4>(two3, two2) : two3;
            if constexpr (rest & 1) part += slide<rest & 6>(one3, one2);
        } else if constexpr (lanes == 4) {
            all = two2 + slide<2>(two2, two1);
            if constexpr (rest & 2) part = two2;
            if constexpr (rest & 1) part += slide<rest & 2>(one2, one1);
        } else {
            all = two1;
            if constexpr (rest & 1) part = one1;
        }
        const int64_t at = t - delay;
        if (at < 0) continue;
        if (wholes == 0) {
            r[at] = part;
        } else if (wholes == 1) {
            if (at > 0) r[at - 1] = before + part;
            before = all;
        } else {
            whole[at] = all;
            if (at < wholes) continue;
            Vec sum = part;
            for (int64_t k = at - wholes; k < at; ++k) sum += whole[k];
            r[at - wholes] = sum;
        }
    }
}

using BoxLine = void (*)(const Wide::Vec*, int64_t, int64_t, Wide::Vec*, Wide::Vec*);

template <int... rest>
BoxLine choose_box_line(int64_t window, std::integer_sequence<int, rest...>) {
    static constexpr BoxLine lines[] = {box_line<rest>...};
    return lines[window % Wide::lanes];
}

// Share of the largest sum of a stream so far below which a sum can only be what rounding has left: an entry
// takes part in at most 2 (chunk + window) additions along z and 2 kMostRows along y, each of which loses at
// most 2^-53 of the sum at that time: in all less than 2^-44 of the largest. The rest is room for what was
// never in one window at once.
constexpr double kRoundingShare = 1.0 / (int64_t{1} << 42);

struct Range {
    double low, high;
};

// The least and the largest of n > 0 numbers; NaN does not count.
inline Range range_of(const double* p, int64_t n) {
    using Vec = Wide::Vec;
    constexpr double inf = std::numeric_limits<double>::infinity();
    Range r{inf, -inf};
    Vec low = Vec{} + inf, high = Vec{} - inf;
    int64_t i = 0;
    for (; i + Wide::lanes <= n; i += Wide::lanes) {
        const Vec v = Wide::load(p + i);
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    for (int lane = 0; lane < Wide::lanes; ++lane) {
        r.low = std::min(r.low, low[lane]);
        r.high = std::max(r.high, high[lane]);
    }
    for (; i < n; ++i) {
        r.low = p[i] < r.low ? p[i] : r.low;
        r.high = p[i] > r.high ? p[i] : r.high;
    }
    return r;
}

// One thread's buffers for boxes of F fields; strips have at most `rows` rows of output.
template <int F>
class BoxStream {
public:
    using Vec = typename Wide::Vec;

    static constexpr int64_t kMostRows = 32;

    BoxStream(const BoxAxis& z, const BoxAxis& y, const BoxAxis& x, int64_t rows)
        : z_(z),
          y_(y),
          x_(x),
          blocks_((x.in + Wide::lanes - 1) / Wide::lanes),
          start_(padded<double>(x.before)),
          count_((start_ - x.before + x.out + Wide::lanes - 1) / Wide::lanes),
          line_(std::max(start_ / Wide::lanes + blocks_, count_ + x.window() / Wide::lanes + kAhead) *
                Wide::lanes),
          box_(choose_box_line(x.window(), std::make_integer_sequence<int, Wide::lanes>())),
          depth_((rows + y.window()) * F * line_ / Wide::lanes),
          across_(F * line_ / Wide::lanes),
          scratch_(count_ + x.window() / Wide::lanes),
          sums_(F * line_ / Wide::lanes) {}

    // Where the sums of one field stand after those of the one before.
    int64_t stride() const { return line_; }

    // Rows of output a strip should have, so that its running sums stay in a level-2 cache of a megabyte. It
    // depends on the shape alone, so that results do not depend on the number of threads.
    static int64_t strip(const BoxAxis& y, const BoxAxis& x) {
        const int64_t row = (x.in + x.window()) * F * static_cast<int64_t>(sizeof(double));
        const int64_t wanted = (int64_t{512} << 10) / std::max<int64_t>(row, 1) - y.window();
        const int64_t few = std::max<int64_t>(8, y.out / 4);  // a small volume is shared out too
        const int64_t rows = std::min({y.out, kMostRows, few, std::max<int64_t>(8, wanted)});
        const int64_t strips = (y.out + rows - 1) / rows;
        return (y.out + strips - 1) / strips;
    }

    // The next run starts anew; otherwise it goes on where the last one of the same rows has ended.
    void restart() { entering_ = -1; }

    // Calls emit(plane, row, sums) for planes [z0, z1) and rows [y0, y1) of output, where sums[k * stride() +
    // i] is the box sum of field k; read(plane, row, block, v) delivers F vectors of input.
    template <class Read, class Emit>
    void run(int64_t z0, int64_t z1, int64_t y0, int64_t y1, const Read& read, const Emit& emit) {
        const int64_t top = std::max<int64_t>(0, y0 - y_.before), bottom = std::min(y_.in, y1 + y_.after);
        if (entering_ < 0) {
            std::fill(depth_.begin(), depth_.end(), Vec{});
            entering_ = leaving_ = std::max<int64_t>(0, z0 - z_.before);
        }
        for (int64_t plane = z0; plane < z1; ++plane) {
            const int64_t entered = std::min(z_.in, plane + z_.after + 1);
            const int64_t left = std::min(entered, plane - z_.before);
            // All but the last planes to enter and to leave; those move row by row on the way along y.
            for (; entering_ + 1 < entered; ++entering_)
                for (int64_t row = top; row < bottom; ++row) move<true, false>(row, top, read);
            for (; leaving_ + 1 < left; ++leaving_)
                for (int64_t row = top; row < bottom; ++row) move<false, true>(row, top, read);
            const bool enters = entering_ < entered, leaves = leaving_ < left;
            if (enters && leaves)
                walk<true, true>(plane, y0, y1, top, read, emit);
            else if (enters)
                walk<true, false>(plane, y0, y1, top, read, emit);
            else if (leaves)
                walk<false, true>(plane, y0, y1, top, read, emit);
            else
                walk<false, false>(plane, y0, y1, top, read, emit);
            entering_ += enters;
            leaving_ += leaves;
        }
    }

private:
    // In one row a plane enters the running sums along z, and one leaves.
    template <bool enters, bool leaves, class Read>
    void move(int64_t row, int64_t top, const Read& read) {
        Vec* to = line(row - top) + start_ / Wide::lanes;
        for (int64_t block = 0; block < blocks_; ++block) {
            Vec in[F], out[F];
            if (enters) read(entering_, row, block, in);
            if (leaves) read(leaving_, row, block, out);
            for (int k = 0; k < F; ++k) {
                Vec& sum = to[k * line_ / Wide::lanes + block];
                if (enters && leaves)
                    sum = (sum + in[k]) - out[k];
                else
                    sum = enters ? sum + in[k] : sum - out[k];
            }
        }
    }

    // Boxes along y and x of the running sums, whose rows are brought up to date while they are at hand.
    template <bool enters, bool leaves, class Read, class Emit>
    void walk(int64_t plane, int64_t y0, int64_t y1, int64_t top, const Read& read, const Emit& emit) {
        const int64_t n = across_.size();
        Vec* __restrict sum = across_.data();
        std::fill(across_.begin(), across_.end(), Vec{});
        int64_t next = top;
        for (int64_t row = y0; row < y1; ++row) {
            const int64_t stop = std::min(y_.in, row + y_.after + 1), gone = row - y_.before - 1;
            const Vec* out = gone >= top ? line(gone - top) : nullptr;
            for (; next < stop; ++next) {
                if (enters || leaves) move<enters, leaves>(next, top, read);
                const Vec* in = line(next - top);
                if (out && next + 1 == stop) {
                    for (int64_t i = 0; i < n; ++i) sum[i] = (sum[i] + in[i]) - out[i];
                    out = nullptr;
                } else {
                    for (int64_t i = 0; i < n; ++i) sum[i] += in[i];
                }
            }
            if (out)
                for (int64_t i = 0; i < n; ++i) sum[i] -= out[i];
            for (int k = 0; k < F; ++k) {
                const int64_t at = k * line_ / Wide::lanes;
                box_(sum + at, count_, x_.window() / Wide::lanes, scratch_.data(), sums_.data() + at);
            }
            emit(plane, row, reinterpret_cast<double*>(sums_.data()) + start_ - x_.before);
        }
    }

    Vec* line(int64_t row) { return depth_.data() + row * F * line_ / Wide::lanes; }

    BoxAxis z_, y_, x_;
    int64_t blocks_, start_;  // vectors in a row of input; where it begins in its padded line
    int64_t count_, line_;    // vectors of sums in a line; its length
    BoxLine box_;
    int64_t entering_ = -1, leaving_ = -1;  // the next planes to do so
    std::vector<Vec> depth_;                // [row][field][line]: running sums along z
    std::vector<Vec> across_;               // [field][line]: of those along y; zeros before and after the row
    std::vector<Vec> scratch_, sums_;
};

}  // namespace nr
