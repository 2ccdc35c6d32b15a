// Dense fields on a lattice in CUDA: differences between neighbours, and refinement. Tensors are contiguous
// and on the device; nothing waits for the device. Every function is instantiated for float and double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/ops.h"
#include "math/penalty.h"

namespace nr {
namespace gpu {

enum class Scheme { kForward = 0, kBackward = 1, kCentral = 2 };

// A field (batch, channels, *size) with 2 or 3 axes, fewer than 2^31 voxels a channel. For Jacobians channels
// is the number of axes.
struct LatticeShape {
    int64_t batch = 0;
    int64_t channels = 0;
    std::vector<int64_t> size;
    std::vector<double> spacing;  // one an axis
    Scheme scheme = Scheme::kForward;
};

// Bytes of device memory that the losses below need as scratch; they need not be cleared.
size_t lattice_scratch(const LatticeShape& shape);
size_t jacobian_penalty_scratch(int64_t n);

// --- lattice_jacobian.cu
template <class T>
void jacobian_determinant_forward(const LatticeShape& shape, const T* u, T* determinant, Where where);
template <class T>
void jacobian_determinant_backward(const LatticeShape& shape, const T* upstream, const T* u, T* grad_u,
                                   Where where);
// value: the mean penalty; folds: determinants of at most 0. upstream: the gradient of the mean, one number.
template <class T>
void jacobian_loss_forward(const LatticeShape& shape, Penalty penalty, double threshold, const T* u, T* value,
                           int64_t* folds, void* scratch, Where where);
template <class T>
void jacobian_loss_backward(const LatticeShape& shape, Penalty penalty, double threshold, const T* upstream,
                            const T* u, T* grad_u, Where where);

// --- lattice_matrices.cu: the same of n Jacobians du/dx (n, ndim, ndim) that are there already
template <class T>
void jacobian_penalty_forward(int ndim, int64_t n, Penalty penalty, double threshold, const T* jacobians,
                              T* value, int64_t* folds, void* scratch, Where where);
template <class T>
void jacobian_penalty_backward(int ndim, int64_t n, Penalty penalty, double threshold, const T* upstream,
                               const T* jacobians, T* grad_jacobians, Where where);

// --- lattice_smoothness.cu
template <class T>
void diffusion_loss_forward(const LatticeShape& shape, const T* u, T* value, void* scratch, Where where);
template <class T>
void diffusion_loss_backward(const LatticeShape& shape, const T* upstream, const T* u, T* grad_u,
                             Where where);
template <class T>
void bending_loss_forward(const LatticeShape& shape, const T* u, T* value, void* scratch, Where where);
template <class T>
void bending_loss_backward(const LatticeShape& shape, const T* upstream, const T* u, T* grad_u, Where where);

}  // namespace gpu
}  // namespace nr
