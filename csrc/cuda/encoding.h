// Encodings in CUDA: feature grids and Fourier features, on their own and as parts of a field. Tensors are
// contiguous and on the device, tables and volumes aligned to 16 bytes; nothing waits for the device. Every
// function is instantiated for float and double. A null pointer means "not wanted".
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/ops.h"

namespace nr {
namespace gpu {

constexpr int kMaxLevels = 32;

struct GridLevel {
    int32_t size[3];  // vertices along each axis
    uint32_t mask;    // entries - 1 of a hashed level; 0: dense
    int64_t offset;   // first entry
};

// How features lie in a table (entries one after another) or in a volume (channels one after another).
struct GridLayout {
    int features = 0;
    bool smooth = false;
    int64_t entry_stride = 0, channel_stride = 0;
};

// A multi-resolution feature grid, or a latent volume: one dense level. Travels with a launch.
struct Grid : GridLayout {
    int ndim = 0;
    int count = 0;        // levels
    int64_t entries = 0;  // of all levels
    GridLevel levels[kMaxLevels];

    int64_t level_entries(int level) const {
        return (level + 1 < count ? levels[level + 1].offset : entries) - levels[level].offset;
    }
};

// Throws where there are more levels than kMaxLevels.
Grid feature_grid(int ndim, const std::vector<int>& resolutions, int features, int64_t table_size,
                  bool smooth);
Grid volume_grid(const std::vector<int>& size, int channels);

// A gradient of encoded features: feature f of point p, row j (0: the value, 1 + k: the tangent along axis k)
// at j row + f feature + p point.
template <class T>
struct Upstream {
    const T* data;
    int rows;  // 1, or 1 + ndim for jets
    int64_t row, feature, point;
};

// encoded: (n, count * features)
template <class T>
void grid_encode(const Grid& grid, int64_t n, const T* x, const T* table, T* encoded, Where where);

// Adds the gradient of the table to grad_table. Without fixed_point by floating atomics, whose sum depends on
// the order in which they come. fixed_point, one int64 an element of the table, holding zeros before and
// after, makes the bits the same every time: contributions are rounded to multiples of 2^-s, with s the
// largest for which the sum of n points' largest possible contributions stays below 2^62. `largest` (8 bytes)
// receives the largest gradient; if it is not finite, the whole gradient of the table becomes NaN.
template <class T>
void grid_scatter(const Grid& grid, int64_t n, const T* x, const Upstream<T>& grad, T* grad_table,
                  int64_t* fixed_point, uint64_t* largest, Where where);

// Adds the gradient to the coordinates to grad_x (n, ndim), or writes it.
template <class T>
void grid_gradient_x(const Grid& grid, int64_t n, const T* x, const T* table, const Upstream<T>& grad,
                     T* grad_x, bool add, Where where);

struct FourierShape {
    int ndim = 0, frequencies = 0;
    double scale = 0;
};

// encoded: (n, 2 frequencies), sines first.
template <class T>
void fourier_encode_forward(const FourierShape& shape, int64_t n, const T* x, const T* matrix, T* encoded,
                            Where where);
// scratch: bytes, need not be cleared; only for grad_matrix.
size_t fourier_encode_scratch(const FourierShape& shape, int64_t n, size_t item);
template <class T>
void fourier_encode_backward(const FourierShape& shape, int64_t n, const T* x, const T* matrix, const T* grad,
                             T* grad_x, T* grad_matrix, void* scratch, Where where);

}  // namespace gpu
}  // namespace nr
