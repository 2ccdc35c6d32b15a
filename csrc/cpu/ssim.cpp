// Structural similarity: weighted moments of f, w, ff, ww, fw streamed through the volume; the backward pass
// streams the derivatives with respect to those moments through the mirrored windows. The work is cut by
// shape alone and partial results are added in order, so that results do not depend on the number of threads.
#include "math/ssim.h"

#include <vector>

#include "cpu/lncc_fields.h"
#include "cpu/loops.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/tap_stream.h"

namespace nr {

namespace {

constexpr int64_t kPlanes = 16;  // that one work item streams

// The windows along z, y, x; 2-D is 3-D with one plane.
struct TapWindows {
    TapAxis z, y, x;
    int64_t in_size, out_size, channels;

    explicit TapWindows(const SsimShape& s)
        : z(s.size.size() == 3 ? axis(s, 0) : TapAxis{1, 1, 0, {1.0}}),
          y(axis(s, s.size.size() - 2)),
          x(axis(s, s.size.size() - 1)),
          in_size(z.in * y.in * x.in),
          out_size(z.out * y.out * x.out),
          channels(s.batch * s.channels) {}

private:
    static TapAxis axis(const SsimShape& s, size_t k) {
        size_t first = 0;
        for (size_t i = 0; i < k; ++i) first += s.window[i];
        const auto from = s.weights.begin() + first;
        const int64_t w = s.window[k];
        return {s.size[k], s.valid ? s.size[k] - w + 1 : s.size[k], s.valid ? 0 : (w - 1) / 2,
                std::vector<double>(from, from + w)};
    }
};

// Runs body(channel, z0, z1, y0, y1, item) for strips of rows times chunks of planes of every channel, with a
// state of its own a thread.
template <class Make, class Body>
int64_t share_out(int64_t channels, int64_t planes, int64_t rows_all, int64_t rows, int threads,
                  const Make& make, const Body& body) {
    const int64_t strips = (rows_all + rows - 1) / rows, chunks = (planes + kPlanes - 1) / kPlanes;
    const int64_t items = channels * strips * chunks;
    parallel_for(items, threads, 1, [&](int64_t begin, int64_t end, int) {
        auto state = make();
        for (int64_t i = begin; i < end; ++i) {
            const int64_t strip = i % strips, chunk = i / strips % chunks;
            body(state, i / strips / chunks, chunk * kPlanes, std::min(planes, (chunk + 1) * kPlanes),
                 strip * rows, std::min(rows_all, (strip + 1) * rows), i);
        }
    });
    return items;
}

// One row of windows: values, their sum, and derivatives by the moments of w, of ff and ww, of fw, of f.
template <class T, int maps>
double evaluate_row(const double* s, int64_t stride, int64_t n, double c1, double c2, double* scratch,
                    T* value, T* const* to) {
    const double *f = s, *w = s + stride, *ff = s + 2 * stride, *ww = s + 3 * stride, *fw = s + 4 * stride;
    T* out[4] = {};
    for (int k = 0; k < maps; ++k) out[k] = to[k];
    NR_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
        const auto window = ssim_window<double>({f[i], w[i], ff[i], ww[i], fw[i]}, c1, c2);
        scratch[i] = window.value;
        if (maps >= 3) {
            out[0][i] = static_cast<T>(window.to_w);
            out[1][i] = static_cast<T>(window.to_square);
            out[2][i] = static_cast<T>(window.to_product);
        }
        if (maps == 4) out[3][i] = static_cast<T>(window.to_f);
    }
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += scratch[i];
    if (value)
        for (int64_t i = 0; i < n; ++i) value[i] = static_cast<T>(scratch[i]);
    return sum;
}

template <class T, int F>
void backward(const SsimShape& shape, const T* upstream, double scale, const T* fixed, const T* warped,
              const std::vector<const T*>& adjoints, T* grad_fixed, T* grad_warped, int threads) {
    const TapWindows w(shape);
    const TapAxis z = w.z.adjoint(), y = w.y.adjoint(), x = w.x.adjoint();
    const int64_t rows = TapStream<F>::strip(y), n = x.out;
    share_out(
        w.channels, z.out, y.out, rows, threads, [&] { return TapStream<F>(z, y, x, rows); },
        [&](TapStream<F>& stream, int64_t channel, int64_t z0, int64_t z1, int64_t y0, int64_t y1, int64_t) {
            const int64_t in = channel * w.in_size, out = channel * w.out_size, stride = stream.stride();
            ReadAdjoints<T, F> read{{}, upstream ? upstream + out : nullptr, y.in, x.in, z.in};
            for (int k = 0; k < F; ++k) read.maps[k] = adjoints[k] + out;
            stream.run(z0, z1, y0, y1, read, [&](int64_t plane, int64_t row, const double* sums) {
                const int64_t at = in + (plane * y.out + row) * n;
                const double *square = sums + stride, *product = sums + 2 * stride;
                const auto combine = [&](const double* one, const T* image, const T* other, T* grad) {
                    NR_INDEPENDENT
                    for (int64_t i = 0; i < n; ++i)
                        grad[i] = static_cast<T>(scale *
                                                 (one[i] + 2 * image[i] * square[i] + other[i] * product[i]));
                };
                combine(sums, warped + at, fixed + at, grad_warped + at);
                if (F == 4) combine(sums + (F - 1) * stride, fixed + at, warped + at, grad_fixed + at);
            });
        });
}

bool empty(const SsimShape& shape) {
    int64_t size = shape.batch * shape.channels;
    for (int64_t n : shape.size) size *= n;
    return size == 0;
}

}  // namespace

template <class T>
double ssim_forward(const SsimShape& shape, const T* fixed, const T* warped, T* values,
                    const std::vector<T*>& adjoints, int threads) {
    if (empty(shape)) return 0;
    const TapWindows w(shape);
    const auto evaluate = adjoints.empty()       ? evaluate_row<T, 0>
                          : adjoints.size() == 3 ? evaluate_row<T, 3>
                                                 : evaluate_row<T, 4>;
    const int64_t rows = TapStream<5>::strip(w.y), n = w.x.out;
    std::vector<double> partial(w.channels * ((w.y.out + rows - 1) / rows) *
                                ((w.z.out + kPlanes - 1) / kPlanes));
    struct State {
        TapStream<5> stream;
        std::vector<double> scratch;
    };
    share_out(
        w.channels, w.z.out, w.y.out, rows, threads,
        [&] { return State{{w.z, w.y, w.x, rows}, std::vector<double>(n)}; },
        [&](State& state, int64_t channel, int64_t z0, int64_t z1, int64_t y0, int64_t y1, int64_t item) {
            const ReadImages<T, false> read{fixed + channel * w.in_size, warped + channel * w.in_size,
                                            nullptr, w.y.in, w.x.in};
            state.stream.run(z0, z1, y0, y1, read, [&](int64_t plane, int64_t row, const double* sums) {
                const int64_t at = channel * w.out_size + (plane * w.y.out + row) * n;
                T* to[4] = {};
                for (size_t k = 0; k < adjoints.size(); ++k) to[k] = adjoints[k] + at;
                partial[item] += evaluate(sums, state.stream.stride(), n, shape.c1, shape.c2,
                                          state.scratch.data(), values ? values + at : nullptr, to);
            });
        });
    double total = 0;
    for (double p : partial) total += p;
    return total;
}

template <class T>
void ssim_backward(const SsimShape& shape, const T* upstream, double scale, const T* fixed, const T* warped,
                   const std::vector<const T*>& adjoints, T* grad_fixed, T* grad_warped, int threads) {
    if (empty(shape)) return;
    const auto run = grad_fixed ? backward<T, 4> : backward<T, 3>;
    run(shape, upstream, scale, fixed, warped, adjoints, grad_fixed, grad_warped, threads);
}

#define NR_INSTANTIATE(T)                                                                                   \
    template double ssim_forward<T>(const SsimShape&, const T*, const T*, T*, const std::vector<T*>&, int); \
    template void ssim_backward<T>(const SsimShape&, const T*, double, const T*, const T*,                  \
                                   const std::vector<const T*>&, T*, T*, int);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace nr
