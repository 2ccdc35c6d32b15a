// The neural field in CUDA: encoding, layers and output of a tile of points in one kernel, forward and
// backward, for values and for jets (value and the tangents along every axis). Tensors are contiguous and on
// the device, tables and volumes aligned to 16 bytes; nothing waits for the device. Every function is
// instantiated for float and double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/encoding.h"
#include "cuda/ops.h"

namespace nr {
namespace gpu {

enum class Encoding { kNone = 0, kFourier = 1, kGrid = 2 };
enum class Skip { kNone = 0, kFirst = 1, kPrevious = 2 };               // as in kernels/spec.py
enum class Output { kDisplacement = 0, kPosition = 1, kVelocity = 2 };  // as in kernels/spec.py

// FieldSpec of kernels/spec.py, without its flow.
struct FieldShape {
    int ndim = 0, out = 0;
    Encoding encoding = Encoding::kNone;
    Grid grid;
    int frequencies = 0;
    double scale = 0;
    bool raw = false;
    int latent = 0;
    std::vector<int> volume_size;
    int volume_channels = 0;
    std::vector<int> hidden;
    int activation = 0;  // math/activation.h
    Skip skip = Skip::kNone;
    Output output = Output::kDisplacement;
    std::vector<double> omega, gate_omega;
    bool bfloat16 =
        false;  // factors of matrix products wider than 8 are rounded to bfloat16; for float alone

    bool gated() const { return !gate_omega.empty(); }
    int encoded() const {
        if (encoding == Encoding::kGrid) return grid.count * grid.features;
        return encoding == Encoding::kFourier ? 2 * frequencies + (raw ? ndim : 0) : ndim;
    }
    int inputs() const { return encoded() + latent + volume_channels; }
};

// The tensors beside x, in the order of the registered op: table or matrix, latent (latent_rows, latent) with
// one row for all points or one a point, volume, then weights and biases of the main stack and of the
// modulator. As gradients: null where not wanted, and nothing for tables and volumes, whose gradients begin
// as those of their features.
template <class T>
struct FieldTensors {
    std::vector<T*> all;
    int64_t latent_rows = 1;
};

// Bytes of device memory that a call for n points needs as scratch: nothing where a tile's activations fit
// shared memory, else the activations of as many tiles as run at once; in the backward also every block's
// sums of the parameters' gradients. At most kMostScratch, unless one block alone needs more.
constexpr size_t kMostScratch = size_t{256} << 20;
size_t field_forward_scratch(const FieldShape& shape, bool jet, int64_t n, size_t item, int device);
size_t field_backward_scratch(const FieldShape& shape, bool jet, int64_t n, size_t item, int device);

// y (n, out) and, for jets, the Jacobian (n, out, ndim), else null.
template <class T>
void field_forward(const FieldShape& shape, int64_t n, const T* x, const FieldTensors<const T>& tensors, T* y,
                   T* jacobian, void* scratch, Where where);

// What the backward reads and writes beside the parameters' gradients.
template <class T>
struct FieldGradients {
    const T* y = nullptr;
    const T* jacobian = nullptr;  // null for values
    T* x = nullptr;               // (n, ndim); without what comes through a grid or a volume
    T* grid = nullptr;            // (encoded, rows, chunk), a row for the value and one for each tangent
    T* volume = nullptr;          // (volume_channels, rows, chunk)
};

// The points of a chunk, from `begin` on, of n. Blocks keep the sums of the parameters' gradients in scratch
// from the first chunk to the last, which writes them to `to`. Chunks come in order and on one stream;
// scratch is that of min(chunk, n) points.
template <class T>
void field_backward(const FieldShape& shape, int64_t begin, int64_t chunk, int64_t n, const T* x,
                    const FieldTensors<const T>& tensors, const FieldGradients<T>& gradients,
                    const FieldTensors<T>& to, void* scratch, Where where);

}  // namespace gpu
}  // namespace nr
