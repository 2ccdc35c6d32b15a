// One vector type per scalar type, as wide as the instruction set of this module (GCC and Clang vector
// extensions).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

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

template <int s, class Vec, std::size_t... I>
inline Vec slide_lanes(Vec a, Vec b, std::index_sequence<I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, (static_cast<int>(I) + s)...);
#else
    typedef std::conditional_t<sizeof(a[0]) == 8, int64_t, int32_t> Mask
        __attribute__((vector_size(sizeof(Vec))));
    return __builtin_shuffle(a, b, Mask{(static_cast<int>(I) + s)...});
#endif
}

// Lanes s, s + 1, ... of the two vectors in a row.
template <int s, class Vec>
inline Vec slide(Vec a, Vec b) {
    return slide_lanes<s>(a, b, std::make_index_sequence<sizeof(Vec) / sizeof(a[0])>());
}

// n rounded up to whole vectors.
template <class T>
constexpr int64_t padded(int64_t n) {
    return (n + Simd<T>::lanes - 1) / Simd<T>::lanes * Simd<T>::lanes;
}

}  // namespace nr
