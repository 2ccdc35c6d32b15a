// C = init + A B with B, C and init row-major and A read element by element at any strides, which serves a
// layer's forward (A = activations, init = bias with row stride 0), its input gradient (A = output gradient)
// and its weight gradient (A = transposed output gradient, init = C) alike. Register tiles of kTileRows x
// (kTileVectors vectors); columns are whole vectors (padded).
#pragma once

#include <algorithm>

#include "cpu/simd.h"

namespace nr {

constexpr int kTileRows = 6;
#if defined(__AVX512F__)
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif
constexpr int kDepthBlock = 128;  // rows of B at a time: with the tile's columns about the first cache

// Stride of rows of n values: whole vectors, and no multiple of 1 KB, which would map the rows to a quarter
// of the cache's sets.
template <class T>
constexpr int64_t row_stride(int64_t n) {
    return padded<T>(n) + (padded<T>(n) * sizeof(T) % 1024 == 0 ? Simd<T>::lanes : 0);
}

// What is multiplied, and how it is added to the sums: numbers of one type here, bfloat16.h has pairs.
template <class T>
struct Full {
    using Factor = T;
    using Sum = T;
    using Row = typename Simd<T>::Vec;

    static Row load(const T* p) { return Simd<T>::load(p); }
    static void add(Row& sum, T a, const Row& b) { sum += a * b; }
};

// A matrix read at any strides, and row-major ones.
template <class Factor, class Sum>
struct GemmOperands {
    const Factor* a;
    int64_t a_row, a_depth;
    const Factor* b;
    int64_t b_row;
    const Sum* init;
    int64_t init_row;
    Sum* c;
    int64_t c_row;

    GemmOperands at(int64_t row, int64_t column, int64_t depth) const {
        return {a + row * a_row + depth * a_depth,
                a_row,
                a_depth,
                b + depth * b_row + column,
                b_row,
                init + row * init_row + column,
                init_row,
                c + row * c_row + column,
                c_row};
    }
};

template <class Product>
using Operands = GemmOperands<typename Product::Factor, typename Product::Sum>;

template <class Product, int Rows, int Vectors>
inline void gemm_tile(int depth, const Operands<Product>& m) {
    using Factor = typename Product::Factor;
    using S = Simd<typename Product::Sum>;
    typename S::Vec sum[Rows][Vectors];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) sum[i][v] = S::load(m.init + i * m.init_row + v * S::lanes);
    const Factor* a = m.a;
    const Factor* b = m.b;
    for (int k = 0; k < depth; ++k, a += m.a_depth, b += m.b_row) {
        typename Product::Row row[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) row[v] = Product::load(b + v * S::lanes);
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i) {
            const Factor factor = a[i * m.a_row];
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) Product::add(sum[i][v], factor, row[v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) S::store(m.c + i * m.c_row + v * S::lanes, sum[i][v]);
}

// The rows that do not fill a tile.
template <class Product, int Vectors, int Rows>
inline void gemm_rest(int rows, int depth, const Operands<Product>& m) {
    if constexpr (Rows > 0) {
        if (rows == Rows)
            gemm_tile<Product, Rows, Vectors>(depth, m);
        else
            gemm_rest<Product, Vectors, Rows - 1>(rows, depth, m);
    }
}

template <class Product, int Vectors>
inline void gemm_rows(int rows, int depth, const Operands<Product>& m) {
    int i = 0;
    for (; i + kTileRows <= rows; i += kTileRows)
        gemm_tile<Product, kTileRows, Vectors>(depth, m.at(i, 0, 0));
    gemm_rest<Product, Vectors, kTileRows - 1>(rows - i, depth, m.at(i, 0, 0));
}

// The columns that do not fill a tile.
template <class Product, int Vectors>
inline void gemm_last_columns(int vectors, int rows, int depth, const Operands<Product>& m) {
    if constexpr (Vectors > 0) {
        if (vectors == Vectors)
            gemm_rows<Product, Vectors>(rows, depth, m);
        else
            gemm_last_columns<Product, Vectors - 1>(vectors, rows, depth, m);
    }
}

// columns: a multiple of the lanes of a vector of sums; depth at least 1.
template <class Product>
inline void gemm(int rows, int columns, int depth, Operands<Product> m) {
    constexpr int lanes = Simd<typename Product::Sum>::lanes;
    for (int k = 0; k < depth; k += kDepthBlock) {
        const int part = std::min(kDepthBlock, depth - k);
        int j = 0;
        for (; j + kTileVectors * lanes <= columns; j += kTileVectors * lanes)
            gemm_rows<Product, kTileVectors>(rows, part, m.at(0, j, k));
        gemm_last_columns<Product, kTileVectors - 1>((columns - j) / lanes, rows, part, m.at(0, j, k));
        m.init = m.c;
        m.init_row = m.c_row;
    }
}

}  // namespace nr
