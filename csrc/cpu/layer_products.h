// The three products of a layer, forward, to its weights and to its input, in full or with factors rounded to
// bfloat16; and the weights packed for them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/bfloat16.h"
#include "cpu/gemm.h"

namespace nr {

// Layers with at most so many inputs or outputs multiply in full.
constexpr int kNarrow = 8;

// Whether a layer's products have factors rounded to bfloat16 when they are asked for.
template <class T>
constexpr bool rounds(int in, int out, bool bfloat16) {
    return std::is_same_v<T, float> && bfloat16 && std::min(in, out) > kNarrow;
}

// A layer's weights, padded to whole vectors, in both orders that the products need: as they are, or in
// pairs.
template <class T>
struct PackedLayer {
    int in, out;
    bool rounded;
    AlignedVector<T> by_input;   // [in][row_stride(out)]: forward
    AlignedVector<T> by_output;  // [out][row_stride(in)]: input gradient; empty for inference
    AlignedVector<Pair> pairs_by_input, pairs_by_output;  // the same with half the rows
    AlignedVector<T> bias;                                // [row_stride(out)]

    PackedLayer(int in, int out, const T* w, const T* b, bool rounded, bool training)
        : in(in),
          out(out),
          rounded(rounded),
          by_input(in * row_stride<T>(out), T(0)),
          bias(row_stride<T>(out), T(0)) {
        std::copy(b, b + out, bias.begin());
        constexpr int kTile = 16;  // transposed tile by tile: rows of either side stay in the cache
        for (int first = 0; first < out; first += kTile)
            for (int i = 0; i < in; ++i)
                for (int o = first; o < std::min(first + kTile, out); ++o)
                    by_input[i * row_stride<T>(out) + o] = w[static_cast<int64_t>(o) * in + i];
        if (training) {
            by_output.assign(out * row_stride<T>(in), T(0));
            for (int o = 0; o < out; ++o)
                std::copy(w + static_cast<int64_t>(o) * in, w + static_cast<int64_t>(o + 1) * in,
                          by_output.begin() + o * row_stride<T>(in));
        }
        if constexpr (std::is_same_v<T, float>) {
            if (rounded) {
                pack_pairs(by_input, in, row_stride<T>(out), pairs_by_input);
                if (training) pack_pairs(by_output, out, row_stride<T>(in), pairs_by_output);
            }
        }
    }

private:
    static void pack_pairs(AlignedVector<float>& from, int rows, int64_t stride, AlignedVector<Pair>& to) {
        to.resize(paired(rows) * stride);
        pair_rows(from.data(), stride, rows, stride, to.data(), stride);
        AlignedVector<float>().swap(from);
    }
};

// One thread's products, with room for factors that have to be rounded.
template <class T>
class LayerProducts {
public:
    // rows: the most that a product has.
    LayerProducts(const std::vector<PackedLayer<T>>& layers, int64_t rows, bool training)
        : machine_(machine_multiplies_pairs()) {
        int64_t widest = 0, left = 0, right = 0;
        for (const PackedLayer<T>& layer : layers) {
            const int64_t in = row_stride<T>(layer.in), out = row_stride<T>(layer.out);
            widest = std::max({widest, in, out});
            if (!layer.rounded) continue;
            left = std::max(left, rows * pair_stride(layer.in));
            if (!training) continue;
            left = std::max({left, rows * pair_stride(layer.out), paired(rows) * out});
            right = std::max(right, paired(rows) * in);
        }
        zeros_.resize(widest);
        left_.resize(left);
        right_.resize(right);
    }

    // before = in W^T, with the bias in the first `count` rows.
    void forward(const PackedLayer<T>& layer, const T* in, int64_t in_stride, int count, int rows,
                 T* before) {
        const int64_t stride = row_stride<T>(layer.out);
        const auto product = [&](auto operands, int64_t depth) {
            const int columns = static_cast<int>(padded<T>(layer.out));
            multiply(count, columns, depth, operands);
            if (rows == count) return;
            operands = operands.at(count, 0, 0);
            operands.init = zeros_.data();
            multiply(rows - count, columns, depth, operands);
        };
        if constexpr (std::is_same_v<T, float>) {
            if (layer.rounded) {
                const int64_t step = round(in, in_stride, rows, layer.in);
                product(GemmOperands<Pair, T>{left_.data(), step, 1, layer.pairs_by_input.data(), stride,
                                              layer.bias.data(), 0, before, stride},
                        paired(layer.in));
                return;
            }
        }
        product(GemmOperands<T, T>{in, in_stride, 1, layer.by_input.data(), stride, layer.bias.data(), 0,
                                   before, stride},
                layer.in);
    }

    // to += g^T in
    void weight_gradient(const PackedLayer<T>& layer, const T* g, const T* in, int64_t in_stride, int rows,
                         T* to) {
        const int64_t stride = row_stride<T>(layer.in), g_stride = row_stride<T>(layer.out);
        const int columns = static_cast<int>(padded<T>(layer.in));
        if constexpr (std::is_same_v<T, float>) {
            if (layer.rounded) {
                pair_rows(g, g_stride, rows, layer.out, left_.data(), g_stride);
                pair_rows(in, in_stride, rows, columns, right_.data(), stride);
                multiply<Pair>(layer.out, columns, paired(rows),
                               {left_.data(), 1, g_stride, right_.data(), stride, to, stride, to, stride});
                return;
            }
        }
        multiply<T>(layer.out, columns, rows, {g, 1, g_stride, in, in_stride, to, stride, to, stride});
    }

    // to = g W, or to += g W, from column `from` on
    void input_gradient(const PackedLayer<T>& layer, const T* g, int rows, bool adds, T* to,
                        int64_t to_stride, int from) {
        const int64_t stride = row_stride<T>(layer.in), g_stride = row_stride<T>(layer.out);
        const int skipped = from / Simd<T>::lanes * Simd<T>::lanes;
        const int columns = static_cast<int>(padded<T>(layer.in)) - skipped;
        to += skipped;
        const T* init = adds ? to : zeros_.data();
        const int64_t init_stride = adds ? to_stride : 0;
        if constexpr (std::is_same_v<T, float>) {
            if (layer.rounded) {
                const int64_t step = round(g, g_stride, rows, layer.out);
                multiply<Pair>(rows, columns, paired(layer.out),
                               {left_.data(), step, 1, layer.pairs_by_output.data() + skipped, stride, init,
                                init_stride, to, to_stride});
                return;
            }
        }
        multiply<T>(
            rows, columns, layer.out,
            {g, g_stride, 1, layer.by_output.data() + skipped, stride, init, init_stride, to, to_stride});
    }

private:
    static int64_t pair_stride(int64_t n) { return padded<T>(n) / 2; }

    // Rows of n values in pairs of neighbours into left_; returns their stride.
    int64_t round(const T* from, int64_t stride, int rows, int n) {
        const int64_t step = pair_stride(n);
        for (int64_t r = 0; r < rows; ++r) pair_neighbours(from + r * stride, n, left_.data() + r * step);
        return step;
    }

    template <class Factor>
    void multiply(int rows, int columns, int64_t depth, const GemmOperands<Factor, T>& operands) const {
        const int steps = static_cast<int>(depth);
        if constexpr (std::is_same_v<Factor, T>)
            gemm<Full<T>>(rows, columns, steps, operands);
        else if (machine_)
            gemm<MachinePairs>(rows, columns, steps, operands);
        else
            gemm<PlainPairs>(rows, columns, steps, operands);
    }

    bool machine_;
    AlignedVector<T> zeros_;
    AlignedVector<Pair> left_, right_;
};

}  // namespace nr
