// Half types as they lie in memory, widened to float. Integer arithmetic and one product: loops over them are
// vectorised on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "math/config.h"

namespace nr {

struct Bfloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

NR_HD inline float float_from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

template <class T>
NR_HD inline T widen(T x) {
    return x;
}

NR_HD inline float widen(Bfloat16 x) { return float_from_bits(uint32_t{x.bits} << 16); }

NR_HD inline float widen(Float16 x) {
    const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, magnitude = uint32_t{x.bits & 0x7fffu};
    // The exponent moves into its new place with its old bias; 2^112 mends that, subnormal numbers included.
    const float value = float_from_bits(magnitude << 13) * 0x1p112f;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    bits |= magnitude >= 0x7c00u ? 0x7f800000u : 0u;  // infinite or NaN
    return float_from_bits(bits | sign);
}

}  // namespace nr
