// A network as the kernels walk it: layers in order, each with the places of what it reads and writes. A
// tile's memory is a row of features, each kPitch numbers long: kRows rows, the value of every point first,
// then its tangents.
#pragma once

#include <cstdint>

#include "cuda/field.h"
#include "math/activation.h"

namespace nr {
namespace gpu {

constexpr int kRows = 64;
constexpr int kPitch = kRows + 4;  // the same row of neighbouring features then lies in different banks
constexpr int kFieldThreads = 128;
constexpr int kColumns = 64;  // results that a staged piece of weights serves
constexpr int kDepth = 32;    // terms of the sum that it covers
constexpr int kStage = kDepth * kPitch;
constexpr int kMaxLayers = 17;  // two stacks of 8 and the output

// Points of a tile whose values and `tangents` tangents fill the rows.
NR_HD constexpr int tile_points(int tangents) { return kRows / (1 + tangents); }

template <class T>
struct FieldLayer {
    const T* weight;  // (fan_out, fan_in)
    const T* bias;
    T omega;
    Activation activation;
    int fan_in, fan_out;
    int in, z,
        out;  // features of the tile: input, before and after the activation (the same where nothing is kept)
    int gate, skip;  // that multiply and add; -1: none

    // Backward. The gradient to `out` lies at `upstream`; there the gradient to the gate is left. The
    // gradient to z replaces z; the one to the input goes to `down` (-1: not wanted), on top of `adds` and,
    // for the first `onto` features, of what is there.
    int upstream, down, onto;
    int adds[10], add_count;
    int sums;  // where the block sums the gradient of the weight, then of the bias
    bool want_weight, want_bias;
};

template <class T>
struct Network {
    int ndim, inputs, encoded, out, count;
    int input, input_gradient;  // features of the tile
    int features;               // of the tile, all together
    Encoding encoding;
    Output output;
    int frequencies;
    bool raw, bfloat16;
    T scale;
    const T* table;  // or matrix
    const T* latent;
    int latent_width;
    int64_t latent_stride;  // 0: one row for all points
    const T* volume;
    GridLayout volume_layout;
    GridLevel volume_level;
    FieldLayer<T> layers[kMaxLayers];
};

}  // namespace gpu
}  // namespace nr
