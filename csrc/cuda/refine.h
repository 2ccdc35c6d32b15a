// Steps of Adam in CUDA: on a dense displacement, and on the rows of a feature table. Tensors are contiguous
// and on the device; nothing waits for the device. Every function is instantiated for float and double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/ops.h"

namespace nr {
namespace gpu {

struct RefineShape {
    int64_t batch = 0;
    int64_t channels = 0;         // of the images
    std::vector<int64_t> size;    // of fixed and of the displacement, 2 or 3 axes
    std::vector<int64_t> in;      // of moving
    std::vector<int64_t> window;  // of the similarity, one an axis
    double regularisation = 0;
    double lr = 0, beta1 = 0, beta2 = 0, eps = 0;
};

// Bytes of device memory that a step needs as scratch; they need not be cleared.
size_t refine_scratch(const RefineShape& shape, size_t item, int device);

// One step on every item's displacement by itself, in place. fixed (batch, channels, *size), moving (batch,
// channels, *in); mean, square and largest (null: no amsgrad) are as large as the displacement (batch, ndim,
// *size). step: the number of steps made, read and increased on the device. work: two images of one item.
// energy (batch): of the displacements before the step.
template <class T>
void refine_step(const RefineShape& shape, const T* fixed, const T* moving, T* displacement, T* mean,
                 T* square, T* largest, int64_t* step, T* work, double* energy, void* scratch, Where where);

// One step on the rows of a table (rows, features) with a gradient, which is cleared; steps (rows).
template <class T>
void table_adam(int64_t rows, int64_t features, double lr, double beta1, double beta2, double eps, T* table,
                T* grad, T* mean, T* square, int32_t* steps, Where where);

}  // namespace gpu
}  // namespace nr
