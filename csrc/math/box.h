// Boxes that end at the border of an image.
#pragma once

#include "math/config.h"

namespace nr {

// Voxels of an axis of n that the box around voxel i holds: i - before ... i + after, those inside.
template <class I>
NR_HD NR_INLINE I voxels_inside(I n, I i, I before, I after) {
    const I first = i > before ? i - before : 0, last = i < n - 1 - after ? i + after : n - 1;
    return last - first + 1;
}

}  // namespace nr
