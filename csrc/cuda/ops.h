// What the CUDA module offers, one declaration an op. Tensors are contiguous and on the device; nothing waits
// for the device. Every function is instantiated for float and double. A null pointer means "not wanted".
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nr {

enum class EpsMode;

namespace gpu {

struct Where {
    int device = 0;
    void* stream = nullptr;  // a cudaStream_t
};

struct LnccShape {
    int64_t batch = 0;
    int64_t channels = 0;
    std::vector<int64_t> size;    // 2 or 3 axes
    std::vector<int64_t> window;  // one an axis
    bool valid = false;           // only full windows; otherwise one window a voxel
    int64_t mask_channels = 0;    // 0: no mask, 1 or channels: mask (batch, mask_channels, *size), 0 = out
    bool squared = true;
    EpsMode eps_mode{};
    double eps = 0, numerator_eps = 0, flat_tol = 0;
    bool zero_rule = false;
};

// Bytes of device memory that the calls below need as scratch; they need not be cleared. fields: 3 for the
// gradient to one image, 5 for both; item: bytes of a scalar.
size_t lncc_forward_scratch(const LnccShape& shape, int device);
size_t lncc_backward_scratch(const LnccShape& shape, int fields, bool recompute, size_t item, int device);

// values: the map (batch, channels, *windows). mean: the mean over the windows that take part, whose number
// goes to count. adjoints: maps of the derivatives with respect to the window sums of warped, of warped^2, of
// the product, and, when there are five, of fixed and of fixed^2; empty for none.
template <class T>
void lncc_forward(const LnccShape& shape, const T* fixed, const T* warped, const uint8_t* mask, T* values,
                  T* mean, double* count, const std::vector<T*>& adjoints, void* scratch, Where where);
// upstream: gradient of the map, or with of_mean the one of the mean, of count windows. adjoints as above, or
// empty: then they are computed again, slab by slab. grad_fixed may be null.
template <class T>
void lncc_backward(const LnccShape& shape, const T* upstream, bool of_mean, const double* count,
                   const T* fixed, const T* warped, const uint8_t* mask,
                   const std::vector<const T*>& adjoints, T* grad_fixed, T* grad_warped, void* scratch,
                   Where where);

struct SsimShape {
    int64_t batch = 0;
    int64_t channels = 0;
    std::vector<int64_t> size;    // 2 or 3 axes
    std::vector<int64_t> window;  // taps, one number an axis
    std::vector<double> weights;  // all axes' windows in a row
    double c1 = 0, c2 = 0;
    bool valid = false;  // only full windows; otherwise one window a voxel
};

// As for lncc; fields: 3 for the gradient to one image, 4 for both.
size_t ssim_forward_scratch(const SsimShape& shape, int device);
size_t ssim_backward_scratch(const SsimShape& shape, int fields, bool recompute, size_t item, int device);

// values: the map (batch, channels, *windows), or null; mean: their mean, or null. adjoints: maps of the
// derivatives with respect to the moments of warped, of the squares, of the product, and, when there are
// four, of fixed; empty for none.
template <class T>
void ssim_forward(const SsimShape& shape, const T* fixed, const T* warped, T* values, T* mean,
                  const std::vector<T*>& adjoints, void* scratch, Where where);
template <class T>
void ssim_backward(const SsimShape& shape, const T* upstream, bool of_mean, const T* fixed, const T* warped,
                   const std::vector<const T*>& adjoints, T* grad_fixed, T* grad_warped, void* scratch,
                   Where where);

}  // namespace gpu
}  // namespace nr
