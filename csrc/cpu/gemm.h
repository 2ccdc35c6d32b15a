// C += A B with C and B row-major and A read element by element at any strides, which serves a layer's
// forward (A = activations), its input gradient (A = output gradient) and its weight gradient (A = transposed
// output gradient) alike. Register tiles of kTileRows x (kTileVectors vectors); columns are whole vectors
// (padded).
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

template <class T, int Rows, int Vectors>
inline void gemm_tile(int depth, const T* a, int64_t a_row, int64_t a_depth, const T* b, int64_t b_row, T* c,
                      int64_t c_row) {
    using S = Simd<T>;
    typename S::Vec sum[Rows][Vectors];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) sum[i][v] = S::load(c + i * c_row + v * S::lanes);
    for (int k = 0; k < depth; ++k) {
        typename S::Vec row[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) row[v] = S::load(b + k * b_row + v * S::lanes);
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i) {
            const T factor = a[i * a_row + k * a_depth];
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sum[i][v] += factor * row[v];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) S::store(c + i * c_row + v * S::lanes, sum[i][v]);
}

template <class T, int Vectors>
inline void gemm_rows(int rows, int depth, const T* a, int64_t a_row, int64_t a_depth, const T* b,
                      int64_t b_row, T* c, int64_t c_row) {
    int i = 0;
    for (; i + kTileRows <= rows; i += kTileRows)
        gemm_tile<T, kTileRows, Vectors>(depth, a + i * a_row, a_row, a_depth, b, b_row, c + i * c_row,
                                         c_row);
    const T* a_rest = a + i * a_row;
    T* c_rest = c + i * c_row;
    switch (rows - i) {
        case 1: gemm_tile<T, 1, Vectors>(depth, a_rest, a_row, a_depth, b, b_row, c_rest, c_row); break;
        case 2: gemm_tile<T, 2, Vectors>(depth, a_rest, a_row, a_depth, b, b_row, c_rest, c_row); break;
        case 3: gemm_tile<T, 3, Vectors>(depth, a_rest, a_row, a_depth, b, b_row, c_rest, c_row); break;
        case 4: gemm_tile<T, 4, Vectors>(depth, a_rest, a_row, a_depth, b, b_row, c_rest, c_row); break;
        case 5: gemm_tile<T, 5, Vectors>(depth, a_rest, a_row, a_depth, b, b_row, c_rest, c_row); break;
        default: break;
    }
}

// columns: a multiple of Simd<T>::lanes.
template <class T>
inline void gemm(int rows, int columns, int depth, const T* a, int64_t a_row, int64_t a_depth, const T* b,
                 int64_t b_row, T* c, int64_t c_row) {
    constexpr int lanes = Simd<T>::lanes;
    int j = 0;
    for (; j + kTileVectors * lanes <= columns; j += kTileVectors * lanes)
        gemm_rows<T, kTileVectors>(rows, depth, a, a_row, a_depth, b + j, b_row, c + j, c_row);
    switch ((columns - j) / lanes) {
        case 1: gemm_rows<T, 1>(rows, depth, a, a_row, a_depth, b + j, b_row, c + j, c_row); break;
        case 2: gemm_rows<T, 2>(rows, depth, a, a_row, a_depth, b + j, b_row, c + j, c_row); break;
        case 3: gemm_rows<T, 3>(rows, depth, a, a_row, a_depth, b + j, b_row, c + j, c_row); break;
        default: break;
    }
}

}  // namespace nr
