// What the LNCC passes stream through boxes: the geometry of the windows, products of the images, adjoint
// maps.
#pragma once

#include "cpu/box_stream.h"
#include "cpu/ops.h"

namespace nr {

// The geometry of windows; 2-D is 3-D with one plane and a window of one plane.
struct Windows {
    BoxAxis z, y, x;
    double voxels;              // in a window
    int64_t centre[3];          // of window 0, as a voxel index along z, y, x
    int64_t in_size, out_size;  // elements of one channel of the images and of the map
    int64_t channels,
        mask_step;  // image channels in all; channels of one batch item that share a mask channel

    explicit Windows(const LnccShape& s)
        : z(s.size.size() == 3 ? axis(s, 0) : BoxAxis(1, 1, 0, 0)),
          y(axis(s, s.size.size() - 2)),
          x(axis(s, s.size.size() - 1)),
          voxels(1),
          in_size(z.in * y.in * x.in),
          out_size(z.out * y.out * x.out),
          channels(s.batch * s.channels),
          mask_step(s.mask_channels == 1 ? s.channels : 1) {
        for (int64_t w : s.window) voxels *= static_cast<double>(w);
        for (size_t k = 0; k < 3; ++k) {
            const bool flat = s.size.size() == 2 && k == 0;
            centre[k] = flat || !s.valid ? 0 : (s.window[k + s.size.size() - 3] - 1) / 2;
        }
    }

private:
    static BoxAxis axis(const LnccShape& s, size_t k) {
        const int64_t w = s.window[k];
        return s.valid ? BoxAxis(s.size[k], s.windows(k), 0, w - 1)
                       : BoxAxis(s.size[k], s.size[k], (w - 1) / 2, w / 2);
    }
};

// Fields of the forward pass; outside the mask all are zero, whatever the images hold there.
template <class T, bool masked>
struct ReadImages {
    static constexpr int kFields = masked ? 6 : 5;
    const T *fixed, *warped;
    const uint8_t* mask;
    int64_t rows, width;

    inline __attribute__((always_inline)) void operator()(int64_t plane, int64_t row, int64_t block,
                                                          Wide::Vec* v) const {
        const int64_t at = (plane * rows + row) * width + block * Wide::lanes,
                      left = width - block * Wide::lanes;
        Wide::Vec f = load_wide(fixed + at, left), w = load_wide(warped + at, left);
        if (masked) {
            const Wide::Vec inside = load_wide(mask + at, left);
            f = inside != 0 ? f : Wide::Vec{};
            w = inside != 0 ? w : Wide::Vec{};
            v[kFields - 1] = inside != 0 ? Wide::Vec{} + 1 : Wide::Vec{};
        }
        v[0] = f;
        v[1] = w;
        v[2] = f * f;
        v[3] = w * w;
        v[4] = f * w;
    }
};

// Fields of the backward pass: adjoint maps, times the upstream gradient where there is one. Planes of the
// maps may live in a ring of `ring` planes.
template <class T, int F>
struct ReadAdjoints {
    const T* maps[F];
    const T* upstream;
    int64_t rows, width, ring;

    inline __attribute__((always_inline)) void operator()(int64_t plane, int64_t row, int64_t block,
                                                          Wide::Vec* v) const {
        const int64_t inside = row * width + block * Wide::lanes, left = width - block * Wide::lanes;
        const int64_t at = plane % ring * rows * width + inside;
        for (int k = 0; k < F; ++k) v[k] = load_wide(maps[k] + at, left);
        if (upstream) {
            const Wide::Vec g = load_wide(upstream + plane * rows * width + inside, left);
            for (int k = 0; k < F; ++k) v[k] *= g;
        }
    }
};

}  // namespace nr
