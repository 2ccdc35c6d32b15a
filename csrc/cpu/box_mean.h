// Box means. Tensors are contiguous; instantiated for float and double.
#pragma once

#include <cstdint>
#include <vector>

namespace nr {

struct BoxShape {
    int64_t channels = 0;         // of all batch items
    std::vector<int64_t> size;    // 2 or 3 axes
    std::vector<int64_t> window;  // one an axis: (w - 1) / 2 voxels before, w / 2 after
    bool adjoint = false;
};

// Means over the voxels of a box that are inside the image, or the adjoint of that. out is as large as image.
template <class T>
void box_mean(const BoxShape& shape, const T* image, T* out, int threads);

}  // namespace nr
