// What the CPU module offers, one declaration an op. Tensors are contiguous; grids and displacements as
// documented in kernels/. Every function is instantiated for float and double. A null gradient pointer means
// "not wanted".
#pragma once

#include <cstdint>
#include <vector>

namespace nr {

// --- field.cpp, encoding.cpp
// -----------------------------------------------------------------------------------

struct GridShape {
    int ndim = 0;
    int features = 0;
    std::vector<int> resolutions;  // vertices per axis, one a level
    int64_t table_size = 0;        // levels with more vertices than this are hashed
};

enum class Encoding { kIdentity = 0, kFourier = 1, kGrid = 2 };

struct FieldShape {
    int ndim = 0;
    Encoding encoding = Encoding::kIdentity;
    GridShape grid;
    int frequencies = 0;
    double fourier_scale = 0;
    std::vector<int> widths;     // encoded input, hidden layers, output
    int activation = 0;          // 0 relu, 1 sine
    std::vector<double> omegas;  // one a hidden layer (sine)
};

template <class T>
void hash_encode_forward(const GridShape& grid, int64_t n, const T* x, const T* table, T* encoded,
                         int threads);
template <class T>
void hash_encode_backward(const GridShape& grid, int64_t n, const T* x, const T* table, const T* grad_encoded,
                          T* grad_x, T* grad_table, int threads);

template <class T>
void fourier_encode_forward(int ndim, int frequencies, double scale, int64_t n, const T* x, const T* b,
                            T* encoded, int threads);
template <class T>
void fourier_encode_backward(int ndim, int frequencies, double scale, int64_t n, const T* x, const T* b,
                             const T* grad_encoded, T* grad_x, T* grad_b, int threads);

// params and grad_params in the order of FieldSpec.parameter_shapes
template <class T>
void field_forward(const FieldShape& shape, int64_t n, const T* x, const std::vector<const T*>& params, T* y,
                   int threads);
template <class T>
void field_backward(const FieldShape& shape, int64_t n, const T* x, const std::vector<const T*>& params,
                    const T* grad_y, T* grad_x, const std::vector<T*>& grad_params, int threads);

// --- sampling.cpp
// ----------------------------------------------------------------------------------------------

enum class Padding;

// What grid_sample and warp share. Shapes in tensor axis order; 2 or 3 axes.
struct SampleShape {
    int64_t batch = 0;
    int64_t channels = 0;
    std::vector<int64_t> in;
    std::vector<int64_t> out;  // of a grid: any shape, only the number of points matters
    bool normalized = false;   // coordinates are torch's grid (batch, points, ndim); otherwise a displacement
                               // (batch, ndim, *out) in voxels, added to the index and then mapped by affine
    bool nearest = false;
    Padding padding{};
    bool align_corners = true;
};

// affine (batch, ndim, ndim + 1) may be null. out (batch, channels, points).
template <class T>
void sample_forward(const SampleShape& shape, const T* image, const T* coordinates, const T* affine, T* out,
                    int threads);
// The gradient buffers must be zeroed. Results do not depend on the number of threads.
template <class T>
void sample_backward(const SampleShape& shape, const T* grad_out, const T* image, const T* coordinates,
                     const T* affine, T* grad_image, T* grad_coordinates, T* grad_affine, int threads);

// --- lncc.cpp
// --------------------------------------------------------------------------------------------------

// --- jacobian.cpp
// ----------------------------------------------------------------------------------------------

enum class Penalty;
enum class Scheme { kForward = 0, kBackward = 1, kCentral = 2 };

// A vector field (batch, channels, *size) on a lattice; 2 or 3 axes. For Jacobians channels is the number of
// axes.
struct LatticeShape {
    int64_t batch = 0;
    int64_t channels = 0;
    std::vector<int64_t> size;
    std::vector<double> spacing;
    Scheme scheme = Scheme::kForward;
};

template <class T>
void jacobian_determinant_forward(const LatticeShape& shape, const T* displacement, T* determinant,
                                  int threads);
template <class T>
void jacobian_determinant_backward(const LatticeShape& shape, const T* grad_determinant,
                                   const T* displacement, T* grad_displacement, int threads);
// The mean penalty, and scale times its gradient.
template <class T>
double jacobian_loss_forward(const LatticeShape& shape, Penalty penalty, double threshold,
                             const T* displacement, int threads);
template <class T>
void jacobian_loss_backward(const LatticeShape& shape, Penalty penalty, double threshold, double scale,
                            const T* displacement, T* grad_displacement, int threads);
template <class T>
double diffusion_loss_forward(const LatticeShape& shape, const T* displacement, int threads);
template <class T>
void diffusion_loss_backward(const LatticeShape& shape, double scale, const T* displacement,
                             T* grad_displacement, int threads);

}  // namespace nr
