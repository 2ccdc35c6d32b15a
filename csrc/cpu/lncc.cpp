// Local normalised cross-correlation: box sums of f, w, ff, ww, fw streamed through the volume; the backward
// pass streams the boxes of the derivatives with respect to those sums (the adjoint of a box is the box with
// its sides swapped). The work is cut by shape alone and partial results are added in order, so that results
// do not depend on the number of threads.
#include "math/lncc.h"

#include <algorithm>
#include <memory>

#include "cpu/box_items.h"
#include "cpu/lncc_streams.h"
#include "cpu/memory.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace nr {

namespace {

constexpr int64_t kSlabPlanes =
    16;  // planes of gradient that the recomputing backward pass finishes at a time

template <class T, bool masked>
LnccTotal forward(const LnccShape& shape, const T* fixed, const T* warped, const uint8_t* mask, T* values,
                  const std::vector<T*>& adjoints, int threads) {
    const Windows w(shape);
    const BoxItems items(BoxStream<ReadImages<T, masked>::kFields>::strip(w.y, w.x), w.y.out, w.z.out);
    std::vector<LnccTotal> partial(w.channels * items.count());
    parallel_for(static_cast<int64_t>(partial.size()), threads, 1, [&](int64_t begin, int64_t end, int) {
        Statistics<T, masked> statistics(shape, w, adjoints.size(), items.rows);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t channel = i / items.count(), item = i % items.count();
            T* maps[5] = {};
            for (size_t k = 0; k < adjoints.size(); ++k) maps[k] = adjoints[k] + channel * w.out_size;
            statistics.restart();
            partial[i] = statistics.run(items.z0(item), items.z1(item), items.y0(item), items.y1(item),
                                        fixed + channel * w.in_size, warped + channel * w.in_size,
                                        mask + channel / w.mask_step * w.in_size * masked,
                                        values ? values + channel * w.out_size : nullptr, maps, w.z.out);
        }
    });
    LnccTotal total;
    for (const LnccTotal& p : partial) {
        total.sum += p.sum;
        total.count += p.count;
    }
    return total;
}

template <class T, int F>
void backward_saved(const LnccShape& shape, const T* upstream, double scale, const T* fixed, const T* warped,
                    const uint8_t* mask, const std::vector<const T*>& adjoints, T* grad_fixed, T* grad_warped,
                    int threads) {
    const Windows w(shape);
    const BoxItems items(BoxStream<F>::strip(w.y.adjoint(), w.x.adjoint()), w.y.in, w.z.in);
    parallel_for(w.channels * items.count(), threads, 1, [&](int64_t begin, int64_t end, int) {
        Gradient<T, F> gradient(w, scale, items.rows);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t channel = i / items.count(), item = i % items.count();
            const int64_t in = channel * w.in_size, out = channel * w.out_size;
            ReadAdjoints<T, F> read{{}, upstream ? upstream + out : nullptr, w.y.out, w.x.out, w.z.out};
            for (int k = 0; k < F; ++k) read.maps[k] = adjoints[k] + out;
            gradient.restart();
            gradient.run(items.z0(item), items.z1(item), items.y0(item), items.y1(item), read, fixed + in,
                         warped + in, mask ? mask + channel / w.mask_step * w.in_size : nullptr,
                         grad_fixed ? grad_fixed + in : nullptr, grad_warped + in);
        }
    });
}

// Slab by slab: the adjoint maps of the windows that a slab of gradient needs and that are not there yet go
// into a ring of planes, then the slab's gradient is streamed from the ring. Every strip of rows keeps its
// running sums from one slab to the next.
template <class T, bool masked, int F>
LnccTotal both_passes(const LnccShape& shape, const T* upstream, double scale, const T* fixed,
                      const T* warped, const uint8_t* mask, T* grad_fixed, T* grad_warped, int threads) {
    const Windows w(shape);
    const BoxAxis back = w.z.adjoint();
    const int64_t rows = BoxStream<ReadImages<T, masked>::kFields>::strip(w.y, w.x);
    const int64_t back_rows = BoxStream<F>::strip(w.y.adjoint(), w.x.adjoint());
    const int64_t strips = (w.y.out + rows - 1) / rows, back_strips = (w.y.in + back_rows - 1) / back_rows;
    // The stream also reads, once more, the plane that leaves.
    const int64_t ring = std::min(w.z.out, kSlabPlanes + back.window()), plane = w.y.out * w.x.out;
    const std::unique_ptr<T[]> maps(
        new T[F * ring * plane]);  // not zeroed: every plane is written before it is read
    expect_writes(maps.get(), F * ring * plane);
    T* to[5] = {};
    for (int k = 0; k < F; ++k) to[k] = maps.get() + k * ring * plane;
    std::vector<Statistics<T, masked>> statistics(strips, Statistics<T, masked>(shape, w, F, rows));
    std::vector<Gradient<T, F>> gradients(back_strips, Gradient<T, F>(w, scale, back_rows));
    std::vector<LnccTotal> partial(strips);
    for (int64_t channel = 0; channel < w.channels; ++channel) {
        const int64_t in = channel * w.in_size;
        const uint8_t* inside = masked ? mask + channel / w.mask_step * w.in_size : nullptr;
        int64_t done = 0;  // planes of windows that have been through the ring
        for (int64_t z0 = 0; z0 < w.z.in; z0 += kSlabPlanes) {
            const int64_t z1 = std::min(w.z.in, z0 + kSlabPlanes);
            const int64_t needed = std::max(done, std::min(w.z.out, z1 + back.after));
            const bool anew = z0 % kChunkPlanes == 0;
            parallel_for(needed > done ? strips : 0, threads, 1, [&](int64_t begin, int64_t end, int) {
                for (int64_t s = begin; s < end; ++s) {
                    if (anew) statistics[s].restart();
                    const LnccTotal t =
                        statistics[s].run(done, needed, s * rows, std::min(w.y.out, (s + 1) * rows),
                                          fixed + in, warped + in, inside, nullptr, to, ring);
                    partial[s].sum += t.sum;
                    partial[s].count += t.count;
                }
            });
            done = needed;
            parallel_for(back_strips, threads, 1, [&](int64_t begin, int64_t end, int) {
                ReadAdjoints<T, F> read{
                    {}, upstream ? upstream + channel * w.out_size : nullptr, w.y.out, w.x.out, ring};
                for (int k = 0; k < F; ++k) read.maps[k] = to[k];
                for (int64_t s = begin; s < end; ++s) {
                    if (anew) gradients[s].restart();
                    gradients[s].run(z0, z1, s * back_rows, std::min(w.y.in, (s + 1) * back_rows), read,
                                     fixed + in, warped + in, inside, grad_fixed ? grad_fixed + in : nullptr,
                                     grad_warped + in);
                }
            });
        }
    }
    LnccTotal total;
    for (const LnccTotal& p : partial) {
        total.sum += p.sum;
        total.count += p.count;
    }
    return total;
}

bool empty(const LnccShape& shape) {
    int64_t size = shape.batch * shape.channels;
    for (int64_t n : shape.size) size *= n;
    return size == 0;
}

}  // namespace

template <class T>
LnccTotal lncc_forward(const LnccShape& shape, const T* fixed, const T* warped, const uint8_t* mask,
                       T* values, const std::vector<T*>& adjoints, int threads) {
    if (empty(shape)) return {};
    const auto run = mask ? forward<T, true> : forward<T, false>;
    return run(shape, fixed, warped, mask, values, adjoints, threads);
}

template <class T>
void lncc_backward(const LnccShape& shape, const T* upstream, double scale, const T* fixed, const T* warped,
                   const uint8_t* mask, const std::vector<const T*>& adjoints, T* grad_fixed, T* grad_warped,
                   int threads) {
    if (empty(shape)) return;
    const auto run = grad_fixed ? backward_saved<T, 5> : backward_saved<T, 3>;
    run(shape, upstream, scale, fixed, warped, mask, adjoints, grad_fixed, grad_warped, threads);
}

template <class T>
LnccTotal lncc_gradient(const LnccShape& shape, const T* upstream, double scale, const T* fixed,
                        const T* warped, const uint8_t* mask, T* grad_fixed, T* grad_warped, int threads) {
    if (empty(shape)) return {};
    const auto two = mask ? both_passes<T, true, 5> : both_passes<T, false, 5>;
    const auto one = mask ? both_passes<T, true, 3> : both_passes<T, false, 3>;
    return (grad_fixed ? two : one)(shape, upstream, scale, fixed, warped, mask, grad_fixed, grad_warped,
                                    threads);
}

#define NR_INSTANTIATE(T)                                                                                  \
    template LnccTotal lncc_forward<T>(const LnccShape&, const T*, const T*, const uint8_t*, T*,           \
                                       const std::vector<T*>&, int);                                       \
    template void lncc_backward<T>(const LnccShape&, const T*, double, const T*, const T*, const uint8_t*, \
                                   const std::vector<const T*>&, T*, T*, int);                             \
    template LnccTotal lncc_gradient<T>(const LnccShape&, const T*, double, const T*, const T*,            \
                                        const uint8_t*, T*, T*, int);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace nr
