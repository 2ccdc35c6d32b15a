// One vector type per scalar type, as wide as the instruction set of this module (GCC and Clang vector
// extensions).
#pragma once

#include <cstdint>
#include <cstring>

namespace nr {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Simd {
    typedef T Vec __attribute__((vector_size(kVectorBytes)));
    static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));

    static Vec load(const T* p) {
        Vec v;
        std::memcpy(&v, p, sizeof(v));  // compiles to one unaligned load
        return v;
    }
    static void store(T* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }
};

// n rounded up to whole vectors.
template <class T>
constexpr int64_t padded(int64_t n) {
    return (n + Simd<T>::lanes - 1) / Simd<T>::lanes * Simd<T>::lanes;
}

}  // namespace nr
