// What the CPU module offers, one declaration an op. Tensors are contiguous; grids and displacements as
// documented in kernels/. Every function is instantiated for float and double. A null gradient pointer means
// "not wanted".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace nr {

// --- field.cpp, encoding.cpp

struct GridShape {
    int ndim = 0;
    int features = 0;
    std::vector<int> resolutions;  // vertices per axis, one a level
    int64_t table_size = 0;        // levels with more vertices than this are hashed
    bool smooth = false;           // smoothstep instead of linear interpolation
};

// Numbered as in kernels/spec.py.
enum class Encoding { kIdentity = 0, kFourier = 1, kGrid = 2 };
enum class Skip { kNone = 0, kFirst = 1, kPrevious = 2 };
enum class Output { kDisplacement = 0, kPosition = 1, kVelocity = 2 };
enum class Activation;

// FieldSpec of kernels/spec.py, with the sizes of the latents of a call.
struct FieldShape {
    int ndim = 0;
    int out = 0;
    Encoding encoding = Encoding::kIdentity;
    GridShape grid;
    int frequencies = 0;
    double fourier_scale = 0;
    bool raw = false;
    int encoded = 0;  // width of the encoding
    int latent = 0;
    bool latent_per_point = false;
    int volume_channels = 0;
    std::vector<int64_t> volume_size;
    std::vector<int> widths;       // main stack: input, hidden layers, output
    std::vector<int> gate_widths;  // modulator: input, hidden layers; empty for none
    Activation activation{};
    std::vector<double> omegas, gate_omegas;
    Skip skip = Skip::kNone;
    Output output = Output::kDisplacement;
    int steps = 0;  // of the flow; 0: none
    double time = 0;
    bool rk4 = true;
    bool bfloat16 = false;  // factors of the layers' products, in float alone

    // A latent that all points share; the first layer's bias takes it in.
    int shared() const { return latent_per_point ? 0 : latent; }
    // Inputs of the first layer that differ between points: [encoding of x | latent a point | latent volume
    // at x].
    int volume_column() const { return encoded + latent - shared(); }
    int inputs() const { return volume_column() + volume_channels; }
    // How often a point's value asks the layers.
    int evaluations() const { return steps ? steps * (rk4 ? 4 : 1) : 1; }
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

// tensors: table or B, latent (rows, width), volume (*size, channels), each where the shape has one, then W,
// b layer by layer of the main stack and of the modulator. kept may be null, else field_kept numbers: the
// encoded points, which the backward then need not encode again. jacobian (n, out, ndim) may be null: values
// alone.
template <class T>
int64_t field_kept(const FieldShape& shape, int64_t n, bool jet);
template <class T>
void field_forward(const FieldShape& shape, int64_t n, const T* x, const std::vector<const T*>& tensors,
                   T* kept, T* y, T* jacobian, int threads);
// grad_jacobian may be null. grads: of x, then of the tensors; zeroed by the caller.
template <class T>
void field_backward(const FieldShape& shape, int64_t n, const T* x, const std::vector<const T*>& tensors,
                    T* kept, const T* grad_y, const T* grad_jacobian, const std::vector<T*>& grads,
                    int threads);

// --- inverse_consistency.cpp

// Mean squared entry of d(there(back(x)) - x)/dx over points and both orders of the two maps, each x + field.
// The tensors and gradients of both as for a field and its backward, with the same codes; grads: empty where
// none are wanted, else a gradient of the result by everything, codes' and x's at the same addresses.
template <class T>
double gradient_inverse_consistency(const FieldShape& shape, int64_t n, const T* x,
                                    const std::vector<const T*>& there, const std::vector<const T*>& back,
                                    const std::vector<T*>& grads_there, const std::vector<T*>& grads_back,
                                    int threads);

// --- table_adam.cpp

// Rows without a gradient stay; steps counts those with one. grad is cleared.
template <class T>
void table_adam(int64_t rows, int64_t features, double lr, double beta1, double beta2, double eps, T* table,
                T* grad, T* mean, T* square, int32_t* steps, int threads);

// --- sampling.cpp, sampling_backward.cpp, sampling_twice.cpp, sampling_labels.cpp

enum class Padding;

// How the image lies in memory: as the scalar type of the call, or narrower (the call computes in float).
enum class Storage { kSame = 0, kBfloat16 = 1, kFloat16 = 2 };

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
    Storage storage = Storage::kSame;
};

// affine (batch, ndim, ndim + 1) may be null. out (batch, channels, points). gradient: null, or the
// derivative of out with respect to the coordinates, a copy of their layout for every channel; not with
// nearest.
template <class T>
void sample_forward(const SampleShape& shape, const void* image, const T* coordinates, const T* affine,
                    T* out, T* gradient, int threads);
// grad_out and grad_gradient arrive at the forward's results; the second may be null and needs a
// displacement. The buffers must be zeroed, but for grad_coordinates of an output that is neither empty nor
// nearest. Results do not depend on the number of threads.
template <class T>
void sample_backward(const SampleShape& shape, const T* grad_out, const T* grad_gradient, const void* image,
                     const T* coordinates, const T* affine, T* grad_image, T* grad_coordinates,
                     T* grad_affine, int threads);

// What arrives at the results of sample_backward; null for what was not computed.
template <class T>
struct SampleTangent {
    const T* image;
    const T* coordinates;
    const T* affine;
};
// The adjoint of sample_backward without grad_gradient; not with nearest, and the image in the scalar type.
// Buffers as there; grad_grad_out need not be zeroed.
template <class T>
void sample_twice(const SampleShape& shape, const SampleTangent<T>& tangent, const T* grad_out,
                  const T* image, const T* coordinates, const T* affine, T* grad_grad_out, T* grad_image,
                  T* grad_coordinates, T* grad_affine, int threads);

// Labels of any type: the nearest voxel's, or, without shape.nearest, the label whose corners have the
// largest sum of weights, the smallest of several.
template <class Label, class T>
void sample_labels(const SampleShape& shape, const Label* labels, const T* coordinates, const T* affine,
                   Label* out, int threads);

// --- lncc.cpp

enum class EpsMode;

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

    // Windows along axis k.
    int64_t windows(std::size_t k) const { return valid ? size[k] - window[k] + 1 : size[k]; }
};

struct LnccTotal {
    double sum = 0;     // of the windows' values
    int64_t count = 0;  // of the windows that take part in the mean
};

// values: the map (batch, channels, *windows), or null. adjoints: maps of the derivatives with respect to the
// window sums of warped, of warped^2, of the product, and, when there are five, of fixed and of fixed^2;
// empty for none.
template <class T>
LnccTotal lncc_forward(const LnccShape& shape, const T* fixed, const T* warped, const uint8_t* mask,
                       T* values, const std::vector<T*>& adjoints, int threads);
// upstream: gradient of the map, or null for ones; all is multiplied by scale. adjoints as above. grad_fixed
// may be null.
template <class T>
void lncc_backward(const LnccShape& shape, const T* upstream, double scale, const T* fixed, const T* warped,
                   const uint8_t* mask, const std::vector<const T*>& adjoints, T* grad_fixed, T* grad_warped,
                   int threads);
// Forward and backward in one pass: the adjoint maps never leave the cache. Arguments as above.
template <class T>
LnccTotal lncc_gradient(const LnccShape& shape, const T* upstream, double scale, const T* fixed,
                        const T* warped, const uint8_t* mask, T* grad_fixed, T* grad_warped, int threads);

// --- ssim.cpp

struct SsimShape {
    int64_t batch = 0;
    int64_t channels = 0;
    std::vector<int64_t> size;    // 2 or 3 axes
    std::vector<int64_t> window;  // one an axis
    std::vector<double> weights;  // of every axis, in a row
    double c1 = 0, c2 = 0;
    bool valid = false;  // only full windows; otherwise one window a voxel
};

// Returns the sum of the values. values: the map (batch, channels, *windows), or null. adjoints: maps of the
// derivatives with respect to the moments of warped, of the squares, of the product, and, when there are
// four, of fixed; empty for none.
template <class T>
double ssim_forward(const SsimShape& shape, const T* fixed, const T* warped, T* values,
                    const std::vector<T*>& adjoints, int threads);
// upstream: gradient of the map, or null for ones; all is multiplied by scale. grad_fixed may be null.
template <class T>
void ssim_backward(const SsimShape& shape, const T* upstream, double scale, const T* fixed, const T* warped,
                   const std::vector<const T*>& adjoints, T* grad_fixed, T* grad_warped, int threads);

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

struct PenaltyTotal {
    double mean = 0;
    int64_t folds = 0;  // determinants of at most 0
};

// The mean penalty with the number of folds, and scale times its gradient.
template <class T>
PenaltyTotal jacobian_loss_forward(const LatticeShape& shape, Penalty penalty, double threshold,
                                   const T* displacement, int threads);
template <class T>
void jacobian_loss_backward(const LatticeShape& shape, Penalty penalty, double threshold, double scale,
                            const T* displacement, T* grad_displacement, int threads);
// The same of n Jacobians du/dx (n, ndim, ndim) that are there already: jacobian_matrices.cpp.
template <class T>
PenaltyTotal jacobian_penalty_forward(int ndim, int64_t n, Penalty penalty, double threshold,
                                      const T* jacobians, int threads);
template <class T>
void jacobian_penalty_backward(int ndim, int64_t n, Penalty penalty, double threshold, double scale,
                               const T* jacobians, T* grad_jacobians, int threads);

// --- conv.cpp

// x (batch, in, *size), w1 (hidden, in, *kernel), w2 (out, hidden, *kernel), kernels of 3 an axis; 2 or 3
// axes.
struct ConvShape {
    int64_t batch = 0, in = 0, hidden = 0, out = 0;
    std::vector<int64_t> size;
};

// y = w2 * relu(w1 * x + b1) + b2, zeros outside.
template <class T>
void conv_relu_conv_forward(const ConvShape& shape, const T* x, const T* w1, const T* b1, const T* w2,
                            const T* b2, T* y, int threads);
// grad_parameters: of w1, b1, w2, b2.
template <class T>
void conv_relu_conv_backward(const ConvShape& shape, const T* grad_y, const T* x, const T* w1, const T* b1,
                             const T* w2, T* grad_x, const std::array<T*, 4>& grad_parameters, int threads);

// --- diffusion.cpp, bending.cpp: the mean, and scale times its gradient

template <class T>
double diffusion_loss_forward(const LatticeShape& shape, const T* displacement, int threads);
template <class T>
void diffusion_loss_backward(const LatticeShape& shape, double scale, const T* displacement,
                             T* grad_displacement, int threads);
template <class T>
double bending_loss_forward(const LatticeShape& shape, const T* displacement, int threads);
template <class T>
void bending_loss_backward(const LatticeShape& shape, double scale, const T* displacement,
                           T* grad_displacement, int threads);

// --- refine.cpp

struct RefineRule {
    double regularisation, lr, beta1, beta2, eps;
};

// Step number t (from 1) of Adam on every item's displacement by itself, in place. The shapes are those of
// one item; fixed (batch, channels, *out), moving (batch, channels, *in); mean, square and largest (null: no
// amsgrad) are as large as the displacement (batch, ndim, *out). work: two images of one item. energy (batch)
// is that of the displacement before the step.
template <class T>
void refine_step(const SampleShape& sampling, const LnccShape& similarity, const RefineRule& rule,
                 int64_t batch, double t, const T* fixed, const T* moving, T* displacement, T* mean,
                 T* square, T* largest, T* work, double* energy, int threads);

}  // namespace nr
