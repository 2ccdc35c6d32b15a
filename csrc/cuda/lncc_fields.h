// What the LNCC kernels stream through boxes and what they make of the sums: the geometry of the windows,
// products of the images, adjoint maps, values and gradients.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/adjoints.h"
#include "cuda/ops.h"
#include "math/lncc.h"

namespace nr {
namespace gpu {

struct Total {
    double sum, count;
};

// Geometry of the windows and the rule, as the kernels need them.
struct Windows {
    Boxes boxes;
    LnccRule<double> rule;
    EpsMode eps_mode;
    bool squared;
    double inverse_n;           // 1 / voxels of a window, 0 for windows of one voxel
    int centre[3];              // of window 0
    int64_t in_size, out_size;  // elements of one channel of the images and of the map
    int64_t channels;
    int64_t mask_step;  // channels of one batch item that share a mask channel

    explicit Windows(const LnccShape& s) {
        const size_t axes = s.size.size();
        double voxels = 1;
        BoxAxis* of[3] = {&boxes.z, &boxes.y, &boxes.x};
        for (size_t k = 0; k < 3; ++k) {
            centre[k] = 0;
            if (k + axes < 3) continue;  // 2-D is one plane of 3-D
            const int64_t n = s.size[k + axes - 3], w = s.window[k + axes - 3];
            if (n > 65535) throw std::runtime_error("lncc: an axis of more than 65535 voxels");
            voxels *= static_cast<double>(w);
            *of[k] = s.valid ? BoxAxis(n, n - w + 1, 0, w - 1) : BoxAxis(n, n, (w - 1) / 2, w / 2);
            if (s.valid) centre[k] = static_cast<int>((w - 1) / 2);
        }
        rule = {s.eps, s.numerator_eps, s.flat_tol, s.zero_rule};
        eps_mode = s.eps_mode;
        squared = s.squared;
        inverse_n = voxels < 2 ? 0 : 1 / voxels;
        in_size = int64_t{1} * boxes.z.in * boxes.y.in * boxes.x.in;
        out_size = int64_t{1} * boxes.z.out * boxes.y.out * boxes.x.out;
        channels = s.batch * s.channels;
        mask_step = s.mask_channels == 1 ? s.channels : 1;
    }
    Boxes back() const { return {boxes.z.adjoint(), boxes.y.adjoint(), boxes.x.adjoint()}; }
};

// Fields of the forward pass; outside the mask all are zero, whatever the images hold there.
template <class T, bool masked>
struct ReadImages {
    static constexpr int kFields = masked ? 6 : 5;
    const T *fixed, *warped;
    const uint8_t* mask;
    int rows, width;

    __device__ uint32_t read(int plane, int y, int x, double* v) const {
        const int64_t at = (int64_t{1} * plane * rows + y) * width + x;
        double f = static_cast<double>(fixed[at]), w = static_cast<double>(warped[at]);
        if (masked) {
            const bool inside = mask[at] != 0;
            f = inside ? f : 0.0;
            w = inside ? w : 0.0;
            v[kFields - 1] = inside ? 1.0 : 0.0;
        }
        v[0] = f;
        v[1] = w;
        v[2] = f * f;
        v[3] = w * w;
        v[4] = f * w;
        return (f != 0 ? 1u : 0u) + (w != 0 ? 1u << 16 : 0u);
    }
    __device__ static void clear(uint32_t count, double* s) {
        const bool f = (count & 0xffffu) != 0, w = count >> 16 != 0;
        s[0] = f ? s[0] : 0.0;
        s[2] = f ? s[2] : 0.0;
        s[1] = w ? s[1] : 0.0;
        s[3] = w ? s[3] : 0.0;
        s[4] = f && w ? s[4] : 0.0;
    }
};

template <class T>
struct Images {
    const T *fixed, *warped;
    const uint8_t* mask;
};

template <class T>
struct Outputs {
    T* values;
    T* adjoints[5];
    int maps;  // 0, 3 or 5 of them
    int ring;  // planes of a channel of the adjoints, reused in turn
    Total* partial;
};

template <EpsMode mode>
__device__ inline WindowValue<double> window_of(const Windows& w, const WindowSums<double>& s,
                                                double inverse_n, bool counted) {
    return w.squared ? lncc_window<mode, true>(s, inverse_n, counted, w.rule)
                     : lncc_window<mode, false>(s, inverse_n, counted, w.rule);
}

// From a window's sums to its value, its derivatives and the totals.
template <class T, bool masked>
struct Evaluate {
    const Windows& w;
    const Outputs<T>& out;
    const uint8_t* mask;
    int64_t channel;
    Total total{0, 0};

    __device__ void operator()(int plane, int y, int x, const double* s) {
        const Boxes& b = w.boxes;
        bool counted = true;
        double inverse_n = w.inverse_n;
        if (masked) {
            const int64_t row = int64_t{1} * (plane + w.centre[0]) * b.y.in + y + w.centre[1];
            counted = mask[row * b.x.in + x + w.centre[2]] != 0;
            inverse_n = s[5] >= 1.5 ? 1 / s[5] : 0.0;  // counts are whole numbers
        }
        const WindowSums<double> sums{s[0], s[1], s[2], s[3], s[4]};
        const WindowValue<double> window =
            w.eps_mode == EpsMode::kProduct ? window_of<EpsMode::kProduct>(w, sums, inverse_n, counted)
            : w.eps_mode == EpsMode::kClamp ? window_of<EpsMode::kClamp>(w, sums, inverse_n, counted)
                                            : window_of<EpsMode::kEach>(w, sums, inverse_n, counted);
        total.sum += window.value;
        total.count += window.counted ? 1.0 : 0.0;
        const int64_t in_plane = int64_t{1} * y * b.x.out + x, size = int64_t{1} * b.y.out * b.x.out;
        if (out.values)
            out.values[channel * w.out_size + plane * size + in_plane] = static_cast<T>(window.value);
        if (out.maps == 0) return;
        const int64_t at = (channel * out.ring + plane % out.ring) * size + in_plane;
        out.adjoints[0][at] = static_cast<T>(window.derivative.w);
        out.adjoints[1][at] = static_cast<T>(window.derivative.ww);
        out.adjoints[2][at] = static_cast<T>(window.derivative.fw);
        if (out.maps == 3) return;
        out.adjoints[3][at] = static_cast<T>(window.derivative.f);
        out.adjoints[4][at] = static_cast<T>(window.derivative.ff);
    }
};

template <class T>
struct Gradients {
    T *fixed, *warped;
    const T* of_mean;  // upstream gradient of the mean of *count windows, or null
    const double* count;
};

template <class T, int F>
struct Combine {
    const Windows& w;
    const Gradients<T>& to;
    const T *fixed, *warped;
    const uint8_t* mask;
    int64_t channel_at;
    double scale;

    __device__ void operator()(int plane, int y, int x, const double* s) {
        const int64_t at = (int64_t{1} * plane * w.boxes.y.in + y) * w.boxes.x.in + x;
        const double f = static_cast<double>(fixed[at]), v = static_cast<double>(warped[at]);
        const bool inside = mask == nullptr || mask[at] != 0;  // outside there may be NaN
        to.warped[channel_at + at] =
            inside ? static_cast<T>(scale * (s[0] + 2 * v * s[1] + f * s[2])) : static_cast<T>(0);
        if (F == 5)
            to.fixed[channel_at + at] =
                inside ? static_cast<T>(scale * (s[F - 2] + 2 * f * s[F - 1] + v * s[2])) : static_cast<T>(0);
    }
};

}  // namespace gpu
}  // namespace nr
