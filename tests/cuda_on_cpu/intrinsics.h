// Warp operations and atomics of the CUDA C++ language, on fibers.
#pragma once

#include <algorithm>
#include <cmath>

#include "fibers.h"

namespace cuda_on_cpu {

template <class T>
T shuffle(uint32_t mask, T value, int lane, int width, bool in_range, const char* file, int line) {
    static_assert(sizeof(T) <= sizeof(Fiber::offered), "a shuffle moves up to 16 bytes");
    meet(mask, &value, sizeof value, file, line);
    (void)width;
    if (!in_range) return value;
    if (!(mask >> lane & 1)) throw Error("a shuffle reads a lane that its mask leaves out");
    T result;
    std::memcpy(&result, lane_value(static_cast<unsigned>(lane)), sizeof result);
    return result;
}

inline int lane_id() { return static_cast<int>(self().rank % 32); }

template <class T>
T shfl(uint32_t mask, T v, int from, int width, const char* file, int line) {
    const int base = lane_id() / width * width;
    return shuffle(mask, v, base + (from % width + width) % width, width, true, file, line);
}
template <class T>
T shfl_down(uint32_t mask, T v, unsigned delta, int width, const char* file, int line) {
    const int lane = lane_id(), from = lane + static_cast<int>(delta);
    return shuffle(mask, v, from, width, from < lane / width * width + width, file, line);
}
template <class T>
T shfl_up(uint32_t mask, T v, unsigned delta, int width, const char* file, int line) {
    const int lane = lane_id(), from = lane - static_cast<int>(delta);
    return shuffle(mask, v, from, width, from >= lane / width * width, file, line);
}
template <class T>
T shfl_xor(uint32_t mask, T v, int bits, int width, const char* file, int line) {
    const int lane = lane_id(), from = lane ^ bits;
    return shuffle(mask, v, from, width, from < lane / width * width + width, file, line);
}

inline uint32_t ballot(uint32_t mask, int predicate, const char* file, int line) {
    const int32_t mine = predicate != 0;
    meet(mask, &mine, sizeof mine, file, line);
    uint32_t votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1 && self().rank / 32 * 32 + lane < machine().count)
            votes |= static_cast<uint32_t>(lane_value(lane)[0] & 1) << lane;
    return votes;
}

// Rounded to nearest, ties to even; NaN stays NaN.
inline uint32_t bfloat16_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline float half_of(uint32_t packed, int which) {
    const uint32_t bits = which ? packed & 0xffff0000u : packed << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// PTX's mma.m16n8k16 with bfloat16 factors and float32 sums, from the fragments that the lanes hold.
inline void mma_bfloat16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file,
                         int line) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    float left[2][16];
    meet(0xffffffffu, a, sizeof a, file, line);
    for (int k = 0; k < 16; ++k) {
        uint32_t of[4];
        std::memcpy(of, lane_value(static_cast<unsigned>(4 * g + k % 8 / 2)), sizeof of);
        for (int i = 0; i < 2; ++i) left[i][k] = half_of(of[i + k / 8 * 2], k % 2);
    }
    meet(0xffffffffu, b, sizeof b, file, line);
    for (int column = 0; column < 2; ++column)
        for (int k = 0; k < 16; ++k) {
            uint32_t of[2];
            std::memcpy(of, lane_value(static_cast<unsigned>(4 * (2 * t + column) + k % 8 / 2)), sizeof of);
            for (int i = 0; i < 2; ++i) sum[2 * i + column] += left[i][k] * half_of(of[k / 8], k % 2);
        }
}

inline uint32_t present(uint32_t mask) {  // lanes that exist
    const unsigned left = machine().count - self().rank / 32 * 32;
    return left >= 32 ? mask : mask & ((1u << left) - 1);
}

}  // namespace cuda_on_cpu

#define NR_HERE __FILE__, __LINE__
#define NR_WIDTH(_1, _2, _3, _4, NAME, ...) NAME
#define NR_SHUFFLE(f, m, v, d, w) cuda_on_cpu::f(m, v, d, w, NR_HERE)
#define __shfl_sync(m, v, ...) NR_SHFL_(shfl, m, v, __VA_ARGS__, 32)
#define __shfl_down_sync(m, v, ...) NR_SHFL_(shfl_down, m, v, __VA_ARGS__, 32)
#define __shfl_up_sync(m, v, ...) NR_SHFL_(shfl_up, m, v, __VA_ARGS__, 32)
#define __shfl_xor_sync(m, v, ...) NR_SHFL_(shfl_xor, m, v, __VA_ARGS__, 32)
#define NR_SHFL_(f, m, v, d, w, ...) NR_SHUFFLE(f, m, v, d, w)
#define __ballot_sync(m, p) cuda_on_cpu::ballot(m, p, NR_HERE)
#define __any_sync(m, p) (cuda_on_cpu::ballot(m, p, NR_HERE) != 0)
#define __all_sync(m, p) (cuda_on_cpu::ballot(m, p, NR_HERE) == cuda_on_cpu::present(m))
#define __syncthreads() cuda_on_cpu::barrier(NR_HERE)
#define NR_SYNCWARP(m, ...) cuda_on_cpu::meet(m, nullptr, 0, NR_HERE)
#define __syncwarp(...) NR_SYNCWARP(NR_FIRST_(__VA_ARGS__ __VA_OPT__(, ) 0xffffffffu))
#define NR_FIRST_(a, ...) a

// Fibers of one thread take turns: nothing can come between reading and writing.
template <class T, class U>
T atomicAdd(T* at, U value) {
    const T before = *at;
    *at = static_cast<T>(before + static_cast<T>(value));
    return before;
}
template <class T, class U>
T atomicMax(T* at, U value) {
    const T before = *at;
    *at = std::max(before, static_cast<T>(value));
    return before;
}
template <class T, class U>
T atomicMin(T* at, U value) {
    const T before = *at;
    *at = std::min(before, static_cast<T>(value));
    return before;
}
template <class T, class U>
T atomicExch(T* at, U value) {
    const T before = *at;
    *at = static_cast<T>(value);
    return before;
}
template <class T, class U, class V>
T atomicCAS(T* at, U compare, V value) {
    const T before = *at;
    if (before == static_cast<T>(compare)) *at = static_cast<T>(value);
    return before;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
template <class T>
T __ldg(const T* at) {
    return *at;
}
