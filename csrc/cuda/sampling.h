// Sampling of images in CUDA: grid_sample and warp, their derivatives, and labels. Tensors are contiguous and
// on the device; nothing waits for the device. Every function is instantiated for float and double. A null
// pointer means "not wanted". Results have the same bits every time but for grad_image without fixed_point.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/ops.h"

namespace nr {

enum class Padding;

namespace gpu {

// How the image lies in memory: as the scalar type of the call, or narrower (the call computes in float).
enum class Storage { kSame = 0, kBfloat16 = 1, kFloat16 = 2 };

// Shapes in tensor axis order; 2 or 3 axes.
struct SampleShape {
    int64_t batch = 0;
    int64_t channels = 0;
    std::vector<int64_t> in;   // fewer than 2^31 voxels
    std::vector<int64_t> out;  // of a grid: any shape, only the number of points matters
    bool normalized = false;   // coordinates are torch's grid (batch, points, ndim); otherwise a displacement
                               // (batch, ndim, *out) in voxels, added to the index and then mapped by affine
    bool nearest = false;
    Padding padding{};
    bool align_corners = true;
    Storage storage = Storage::kSame;
};

// affine (batch, ndim, ndim + 1) may be null. out (batch, channels, points). gradient: null, or the
// derivative of out with respect to the coordinates, a copy of their layout for every channel; not with
// nearest.
template <class T>
void sample_forward(const SampleShape& shape, const void* image, const T* coordinates, const T* affine,
                    T* out, T* gradient, Where where);

// How the gradient of the image is summed. sums null: by floating atomics, whose sum depends on the order in
// which they come. Otherwise one int64 an element of the image, holding zeros before and after, and
// `largest` (8 bytes): the same bits every time (cuda/fixed_point.h); what arrives and is not finite makes
// the whole gradient NaN.
struct FixedPoint {
    int64_t* sums = nullptr;
    uint64_t* largest = nullptr;
};

// Bytes of scratch for a gradient of the affine; they need not be cleared.
size_t sample_scratch(const SampleShape& shape);

// What is to be computed. image is added to and comes zeroed by the caller, the others are written; affine
// needs scratch.
template <class T>
struct SampleGradients {
    T* image;
    T* coordinates;
    T* affine;
    FixedPoint fixed_point;
    void* scratch;
};

// grad_out and grad_gradient arrive at the forward's results; the second may be null and needs a
// displacement. With nearest only the gradient of the image is written.
template <class T>
void sample_backward(const SampleShape& shape, const T* grad_out, const T* grad_gradient, const void* image,
                     const T* coordinates, const T* affine, const SampleGradients<T>& gradients, Where where);

// What arrives at the results of sample_backward; null for what was not computed.
template <class T>
struct SampleTangent {
    const T* image;
    const T* coordinates;
    const T* affine;
};

// The adjoint of sample_backward without grad_gradient; not with nearest, and the image in the scalar type.
template <class T>
void sample_twice(const SampleShape& shape, const SampleTangent<T>& tangent, const T* grad_out,
                  const T* image, const T* coordinates, const T* affine, T* grad_grad_out,
                  const SampleGradients<T>& gradients, Where where);

// Labels of any type: the nearest voxel's, or, without shape.nearest, the label whose corners have the
// largest sum of weights, the smallest of several.
template <class Label, class T>
void sample_labels(const SampleShape& shape, const Label* labels, const T* coordinates, const T* affine,
                   Label* out, Where where);

}  // namespace gpu
}  // namespace nr
