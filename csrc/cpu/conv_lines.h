// Convolutions of few channels with 3 taps an axis, along lines. A tile of planes is laid out with a zero at
// both ends of every row and the rows behind each other, so that a plane of one channel is one line and a tap
// an offset into it: no row has an end to take care of. What a line says at the ends of rows is meaningless,
// and cleared where it is read again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/simd.h"

namespace nr {

// Register tiles: outputs x vectors of a convolution, channels of a correlation.
#if defined(__AVX512F__)
constexpr int kManyVectors = 3, kFewVectors = 6, kCorrelated = 8;
#else
constexpr int kManyVectors = 1, kFewVectors = 3, kCorrelated = 4;
#endif
constexpr int kMany = 8, kFew = 3;  // outputs computed together

// The weights of a convolution in the order in which they are read: [block of outputs][tap][output]. A block
// is filled up with zeros.
template <class T>
struct Taps {
    int count;    // taps
    int block;    // outputs in a block: kMany or kFew
    int outputs;  // whole blocks
    AlignedVector<T> weights, bias;

    // weight(output, tap) and bias(output), for the outputs that there are
    template <class Weight, class Bias>
    Taps(int64_t real, int taps, int outputs_together, Weight weight, Bias start)
        : count(taps),
          block(outputs_together),
          outputs(static_cast<int>((real + block - 1) / block * block)),
          weights(static_cast<size_t>(outputs) * count, T(0)),
          bias(outputs, T(0)) {
        for (int o = 0; o < real; ++o) {
            bias[o] = start(o);
            for (int t = 0; t < count; ++t)
                weights[(static_cast<size_t>(o / block) * count + t) * block + o % block] = weight(o, t);
        }
    }
};

// Lines are as long as whole blocks of vectors.
template <class T>
constexpr int64_t whole_blocks(int64_t n) {
    constexpr int64_t block = int64_t{kManyVectors} * kFewVectors * Simd<T>::lanes;
    return (n + block - 1) / block * block;
}

template <class T, int Rows, int Vectors>
inline void convolve_block(int taps, const T* weights, const T* bias, const T* in, const int64_t* offsets,
                           T* out, int64_t line) {
    using S = Simd<T>;
    typename S::Vec sum[Rows][Vectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) sum[r][v] = bias[r] - typename S::Vec{};
    for (int t = 0; t < taps; ++t, weights += Rows) {
        const T* from = in + offsets[t];
        typename S::Vec read[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) read[v] = S::load(from + v * S::lanes);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const T weight = weights[r];
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sum[r][v] += weight * read[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) S::store(out + r * line + v * S::lanes, sum[r][v]);
}

template <class T, int Rows, int Vectors>
inline void convolve_blocks(const Taps<T>& taps, const T* in, const int64_t* offsets, T* out, int64_t line,
                            int64_t n) {
    for (int64_t p = 0; p < n; p += Vectors * Simd<T>::lanes)
        for (int o = 0; o < taps.outputs; o += Rows)
            convolve_block<T, Rows, Vectors>(taps.count, taps.weights.data() + int64_t{o} * taps.count,
                                             taps.bias.data() + o, in + p, offsets, out + o * line + p, line);
}

// out[o * line + p] = bias[o] + sum over taps t of weight[o][t] in[offsets[t] + p] for p in [0, n), n rounded
// up to whole blocks.
template <class T>
inline void convolve_lines(const Taps<T>& taps, const T* in, const int64_t* offsets, T* out, int64_t line,
                           int64_t n) {
    if (taps.block == kMany)
        convolve_blocks<T, kMany, kManyVectors>(taps, in, offsets, out, line, n);
    else
        convolve_blocks<T, kFew, kFewVectors>(taps, in, offsets, out, line, n);
}

// The first n lanes, zeros behind.
template <class T>
inline typename Simd<T>::Vec load_first(const T* p, int64_t n) {
    typename Simd<T>::Vec v{};
    std::memcpy(&v, p, n * sizeof(T));
    return v;
}

template <class T, int Channels, int Count>
inline void correlate_block(const T* a, int64_t line, const T* b, const int64_t* offsets, int64_t n,
                            double* sums, int64_t sums_row) {
    using S = Simd<T>;
    typename S::Vec sum[Channels][Count] = {};
    const auto add = [&](int64_t p, const auto& load) __attribute__((always_inline)) {
        typename S::Vec read[Count];
#pragma GCC unroll 8
        for (int t = 0; t < Count; ++t) read[t] = S::load(b + offsets[t] + p);
#pragma GCC unroll 8
        for (int c = 0; c < Channels; ++c) {
            const typename S::Vec factor = load(a + c * line + p);
#pragma GCC unroll 8
            for (int t = 0; t < Count; ++t) sum[c][t] += factor * read[t];
        }
    };
    int64_t p = 0;
    for (; p + S::lanes <= n; p += S::lanes) add(p, [](const T* at) { return S::load(at); });
    if (p < n) add(p, [&](const T* at) { return load_first(at, n - p); });
    for (int c = 0; c < Channels; ++c)
        for (int t = 0; t < Count; ++t)
            for (int i = 0; i < S::lanes; ++i) sums[c * sums_row + t] += sum[c][t][i];
}

// sums[c * taps + t] += sum over p in [0, n) of a[c * line + p] b[offsets[t] + p]; channels a multiple of
// kCorrelated, taps of 3.
template <class T>
inline void correlate_lines(int channels, const T* a, int64_t line, int taps, const T* b,
                            const int64_t* offsets, int64_t n, double* sums) {
    for (int c = 0; c < channels; c += kCorrelated)
        for (int t = 0; t < taps; t += 3)
            correlate_block<T, kCorrelated, 3>(a + c * line, line, b, offsets + t, n,
                                               sums + int64_t{c} * taps + t, taps);
}

}  // namespace nr
