// Box means in CUDA. Tensors are contiguous and on the device; nothing waits for the device. Instantiated for
// float and double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/ops.h"

namespace nr {
namespace gpu {

struct BoxShape {
    int64_t channels = 0;         // of all batch items
    std::vector<int64_t> size;    // 2 or 3 axes
    std::vector<int64_t> window;  // one an axis: (w - 1) / 2 voxels before, w / 2 after
    bool adjoint = false;
};

// Bytes of device memory that a call needs as scratch; they need not be cleared.
size_t box_mean_scratch(const BoxShape& shape, int device);

// Means over the voxels of a box that are inside the image, or the adjoint of that. out is as large as image.
template <class T>
void box_mean(const BoxShape& shape, const T* image, T* out, void* scratch, Where where);

}  // namespace gpu
}  // namespace nr
