// The two streams of LNCC: from the images to the windows' values and derivatives, and from the derivatives
// to the gradient.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "cpu/box_stream.h"
#include "cpu/lncc_fields.h"
#include "cpu/loops.h"
#include "cpu/ops.h"
#include "math/lncc.h"

namespace nr {

// One row of windows: from sums to values and derivatives (F maps; 0, 3 or 5).
template <class T, EpsMode mode, bool squared, int maps>
void evaluate_row(const double* s, int64_t stride, const double* inverse_n, const double* centre, int64_t n,
                  const LnccRule<double>& rule, double* value, double* counted, T* const* to) {
    const double *sf = s, *sw = s + stride, *sff = s + 2 * stride, *sww = s + 3 * stride,
                 *sfw = s + 4 * stride;
    const LnccRule<double> r = rule;
    T* out[5] = {};
    for (int k = 0; k < maps; ++k) out[k] = to[k];
    T *dw = out[0], *dww = out[1], *dfw = out[2], *df = out[3], *dff = out[4];
    NR_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
        const auto window = lncc_window<mode, squared>(
            WindowSums<double>{sf[i], sw[i], sff[i], sww[i], sfw[i]}, inverse_n[i], centre[i] != 0, r);
        value[i] = window.value;
        counted[i] = window.counted ? 1.0 : 0.0;
        if (maps >= 3) {
            dw[i] = static_cast<T>(window.derivative.w);
            dww[i] = static_cast<T>(window.derivative.ww);
            dfw[i] = static_cast<T>(window.derivative.fw);
        }
        if (maps == 5) {
            df[i] = static_cast<T>(window.derivative.f);
            dff[i] = static_cast<T>(window.derivative.ff);
        }
    }
}

template <class T>
using EvaluateRow = void (*)(const double*, int64_t, const double*, const double*, int64_t,
                             const LnccRule<double>&, double*, double*, T* const*);

template <class T, EpsMode mode, bool squared>
EvaluateRow<T> choose_maps(size_t maps) {
    return maps == 5   ? evaluate_row<T, mode, squared, 5>
           : maps == 3 ? evaluate_row<T, mode, squared, 3>
                       : evaluate_row<T, mode, squared, 0>;
}

template <class T, EpsMode mode>
EvaluateRow<T> choose_power(bool squared, size_t maps) {
    return squared ? choose_maps<T, mode, true>(maps) : choose_maps<T, mode, false>(maps);
}

template <class T>
EvaluateRow<T> choose(const LnccShape& s, size_t maps) {
    if (s.eps_mode == EpsMode::kProduct) return choose_power<T, EpsMode::kProduct>(s.squared, maps);
    if (s.eps_mode == EpsMode::kClamp) return choose_power<T, EpsMode::kClamp>(s.squared, maps);
    return choose_power<T, EpsMode::kEach>(s.squared, maps);
}

// Streams the statistics of one channel's windows in planes [z0, z1), rows [y0, y1). Planes of the maps may
// live in a ring of `ring` planes; the map of values does not.
template <class T, bool masked>
class Statistics {
    using Read = ReadImages<T, masked>;

public:
    Statistics(const LnccShape& shape, const Windows& windows, size_t maps, int64_t rows)
        : w_(windows),
          rule_{shape.eps, shape.numerator_eps, shape.flat_tol, shape.zero_rule},
          evaluate_(choose<T>(shape, maps)),
          maps_(maps),
          stream_(windows.z, windows.y, windows.x, rows),
          inverse_n_(windows.x.out, 1 / windows.voxels),
          centre_(windows.x.out, 1),
          value_(windows.x.out),
          counted_(windows.x.out),
          none_(windows.x.out) {
        if (windows.voxels < 2) std::fill(inverse_n_.begin(), inverse_n_.end(), 0.0);
    }

    void restart() {
        stream_.restart();
        most_f_ = most_w_ = 0;
    }

    LnccTotal run(int64_t z0, int64_t z1, int64_t y0, int64_t y1, const T* fixed, const T* warped,
                  const uint8_t* mask, T* values, T* const* adjoints, int64_t ring) {
        LnccTotal total;
        const int64_t n = w_.x.out;
        const Read read{fixed, warped, mask, w_.y.in, w_.x.in};
        stream_.run(z0, z1, y0, y1, read, [&](int64_t plane, int64_t row, double* sums) {
            if (masked) {
                const uint8_t* at =
                    mask + ((plane + w_.centre[0]) * w_.y.in + row + w_.centre[1]) * w_.x.in + w_.centre[2];
                const double* count = sums + 5 * stream_.stride();
                for (int64_t i = 0; i < n; ++i) {
                    centre_[i] = at[i] != 0 ? 1.0 : 0.0;
                    inverse_n_[i] = count[i] >= 1.5 ? 1 / count[i] : 0.0;  // counts are whole numbers
                }
            }
            T* to[5] = {};
            for (size_t k = 0; k < maps_; ++k) to[k] = adjoints[k] + (plane % ring * w_.y.out + row) * n;
            most_f_ = clear(sums, 2, {0, 2, 4}, most_f_);
            most_w_ = clear(sums, 3, {1, 3, 4}, most_w_);
            evaluate_(sums, stream_.stride(), inverse_n_.data(), centre_.data(), n, rule_, value_.data(),
                      counted_.data(), to);
            double sum = 0, count = 0;
            const double *value = value_.data(), *counted = counted_.data();
#if defined(_OPENMP)
#pragma omp simd reduction(+ : sum, count)
#endif
            for (int64_t i = 0; i < n; ++i) {
                sum += value[i];
                count += counted[i];
            }
            total.sum += sum;
            total.count += static_cast<int64_t>(count);
            if (values) {
                T* out = values + (plane * w_.y.out + row) * n;
                for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(value[i]);
            }
        });
        return total;
    }

private:
    // Zeros for the sums of the image whose squares are field `squares`, where those are only what rounding
    // has left; returns the largest sum of squares so far.
    double clear(double* sums, int squares, std::initializer_list<int> fields, double most) {
        const int64_t n = w_.x.out, stride = stream_.stride();
        const double* ss = sums + squares * stride;
        const double least = kRoundingShare * most;
        const Range range = range_of(ss, n);
        if (range.low <= least) {
            uint8_t* none = none_.data();
            for (int64_t i = 0; i < n; ++i) none[i] = ss[i] <= least;
            for (int k : fields) {
                double* sum = sums + k * stride;
                for (int64_t i = 0; i < n; ++i) sum[i] = none[i] ? 0.0 : sum[i];
            }
        }
        return std::max(most, range.high);
    }

    Windows w_;
    LnccRule<double> rule_;
    EvaluateRow<T> evaluate_;
    size_t maps_;
    BoxStream<Read::kFields> stream_;
    std::vector<double> inverse_n_, centre_;  // centre_: 1 where the window's centre is inside the mask
    std::vector<double> value_, counted_;
    std::vector<uint8_t> none_;
    double most_f_ = 0, most_w_ = 0;  // largest sums of squares so far
};

// Streams the gradient of one channel from its adjoint maps: F = 3 gives the warped image's, F = 5 both.
template <class T, int F>
class Gradient {
public:
    Gradient(const Windows& w, double scale, int64_t rows)
        : w_(w), scale_(scale), stream_(w.z.adjoint(), w.y.adjoint(), w.x.adjoint(), rows) {}

    void restart() {
        stream_.restart();
        std::fill(most_, most_ + F, 0.0);
    }

    void run(int64_t z0, int64_t z1, int64_t y0, int64_t y1, const ReadAdjoints<T, F>& read, const T* fixed,
             const T* warped, const uint8_t* mask, T* grad_fixed, T* grad_warped) {
        const int64_t n = w_.x.in, stride = stream_.stride();
        double* most = most_;
        double least[F];
        stream_.run(z0, z1, y0, y1, read, [&](int64_t plane, int64_t row, const double* sums) {
            const int64_t at = (plane * w_.y.in + row) * n;
            const T *f = fixed + at, *w = warped + at;
            for (int k = 0; k < F; ++k) least[k] = kRoundingShare * most[k];
            combine(n, sums, stride, least, 0, w, f, grad_warped + at);
            if (F == 5) combine(n, sums, stride, least, F - 2, f, w, grad_fixed + at);
            for (int k = 0; k < F; ++k) {
                const Range range = range_of(sums + k * stride, n);
                most[k] = std::max({most[k], -range.low, range.high});
            }
            if (mask)
                for (int64_t i = 0; i < n; ++i) {
                    if (mask[at + i]) continue;
                    grad_warped[at + i] = T(0);
                    if (F == 5) grad_fixed[at + i] = T(0);
                }
        });
    }

private:
    // From the sums of the derivatives by the image's sum (field `first`), its square (the next) and the
    // product (field 2) to the image's gradient.
    void combine(int64_t n, const double* sums, int64_t stride, const double* least, int first,
                 const T* image, const T* other, T* grad) const {
        const double *one = sums + first * stride, *own = one + stride, *cross = sums + 2 * stride;
        const double scale = scale_, least_one = least[first], least_own = least[first + 1],
                     least_cross = least[2];
        NR_INDEPENDENT
        for (int64_t i = 0; i < n; ++i) {
            const double a = one[i], b = own[i], c = cross[i];
            const double by_one = std::abs(a) <= least_one ? 0 : a, by_own = std::abs(b) <= least_own ? 0 : b,
                         by_cross = std::abs(c) <= least_cross ? 0 : c;
            grad[i] = static_cast<T>(scale * (by_one + 2 * image[i] * by_own + other[i] * by_cross));
        }
    }

    Windows w_;
    double scale_;
    BoxStream<F> stream_;
    double most_[F] = {};  // largest sums so far
};

}  // namespace nr
