// Columns of a layer's input that are the same at all points, as a code of the whole field is: their product
// with the weights is part of the bias, and their derivatives to the coordinates are nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/bfloat16.h"

namespace nr {

// Columns [first, first + count) have `values`; `weights` (out, in) are the layer's. None: count is 0.
template <class T>
struct SharedColumns {
    int first = 0, count = 0;
    const T* values = nullptr;
    const T* weights = nullptr;

    // To a row of the weights' gradient, of `in` columns: what the other columns got, and what the bias did.
    void add_row(const T* others, T bias, int in, T* row) const {
        for (int i = 0; i < first; ++i) row[i] += others[i];
        for (int i = 0; i < count; ++i) row[first + i] += bias * values[i];
        for (int i = first + count; i < in; ++i) row[i] += others[i - count];
    }

    // To the gradient of the values, from that of the bias.
    void add_gradient(int in, int out, const T* bias, T* gradient) const {
        for (int o = 0; o < out; ++o)
            for (int i = 0; i < count; ++i)
                gradient[i] += bias[o] * weights[static_cast<int64_t>(o) * in + first + i];
    }
};

// A layer without its shared columns.
template <class T>
struct FoldedLayer {
    std::vector<T> weights, bias;

    FoldedLayer(const SharedColumns<T>& shared, int in, int out, const T* w, const T* b, bool rounded)
        : bias(b, b + out) {
        weights.reserve(static_cast<size_t>(out) * (in - shared.count));
        for (int o = 0; o < out; ++o) {
            const T *row = w + static_cast<int64_t>(o) * in, *columns = row + shared.first;
            weights.insert(weights.end(), row, columns);
            weights.insert(weights.end(), columns + shared.count, row + in);
            for (int i = 0; i < shared.count; ++i)
                bias[o] += factor(columns[i], rounded) * factor(shared.values[i], rounded);
        }
    }

private:
    static T factor(T x, bool rounded) {
        if constexpr (std::is_same_v<T, float>)
            if (rounded) return float_from_bits(nearest_bfloat16(x) << 16);
        return x;
    }
};

}  // namespace nr
