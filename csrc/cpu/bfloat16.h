// Products of bfloat16 factors with float sums. A word holds the factors of two neighbouring steps of a
// product's depth, as the machines that have an instruction for it want them.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/loops.h"
#include "cpu/simd.h"
#include "math/half.h"

namespace nr {

struct Pair {
    uint32_t bits;  // the earlier step in the low half
};

// Steps of the depth that n factors take.
constexpr int64_t paired(int64_t n) { return (n + 1) / 2; }

// The bits of the nearest bfloat16, ties to even; NaN stays NaN.
inline uint32_t nearest_bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    const uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u), quiet = bits | 0x400000u;
    return ((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded) >> 16;
}

// Pairs of neighbours among n values; a last one without a neighbour is paired with zero.
inline void pair_neighbours(const float* from, int64_t n, Pair* to) {
    NR_INDEPENDENT
    for (int64_t i = 0; i < n / 2; ++i)
        to[i].bits = nearest_bfloat16(from[2 * i]) | nearest_bfloat16(from[2 * i + 1]) << 16;
    if (n % 2) to[n / 2].bits = nearest_bfloat16(from[n - 1]);
}

// Pairs across rows of n values, `rows` of them at a stride; a last row without a neighbour is paired with
// zeros.
inline void pair_rows(const float* from, int64_t stride, int64_t rows, int64_t n, Pair* to,
                      int64_t to_stride) {
    for (int64_t r = 0; r < rows / 2; ++r) {
        const float *even = from + 2 * r * stride, *odd = even + stride;
        Pair* row = to + r * to_stride;
        NR_INDEPENDENT
        for (int64_t i = 0; i < n; ++i)
            row[i].bits = nearest_bfloat16(even[i]) | nearest_bfloat16(odd[i]) << 16;
    }
    if (rows % 2) {
        Pair* row = to + rows / 2 * to_stride;
        for (int64_t i = 0; i < n; ++i) row[i].bits = nearest_bfloat16(from[(rows - 1) * stride + i]);
    }
}

// gemm.h's products of pairs, where the machine has no instruction for them.
struct PlainPairs {
    using Factor = Pair;
    using Sum = float;
    using Row = Simd<uint32_t>::Vec;

    static Row load(const Pair* p) { return Simd<uint32_t>::load(&p->bits); }
    static void add(Simd<float>::Vec& sum, Pair a, const Row& b) {
        Simd<float>::Vec even, odd;
        const Row low = b << 16, high = b & 0xffff0000u;
        std::memcpy(&even, &low, sizeof(even));
        std::memcpy(&odd, &high, sizeof(odd));
        sum += float_from_bits(a.bits << 16) * even;
        sum += float_from_bits(a.bits & 0xffff0000u) * odd;
    }
};

#if defined(NR_VDPBF16PS)  // set by setup.py where the assembler knows it
// The same where it has. Written out, because only this one instruction goes beyond what the module is
// compiled for.
struct MachinePairs : PlainPairs {
    static void add(Simd<float>::Vec& sum, Pair a, const Row& b) {
        const Row factor = Row{} + a.bits;
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(b), "v"(factor));
    }
};
#else
using MachinePairs = PlainPairs;
#endif

// Whether the machine has the instruction, and this module is one that uses it.
inline bool machine_multiplies_pairs() {
#if defined(NR_VDPBF16PS)
    return __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

}  // namespace nr
