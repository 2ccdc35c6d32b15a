// exp and log1p without branches, so that loops over them vectorise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "math/config.h"

namespace nr {

// Float: 2^n exp(r) with x = n ln 2 + r (Cody and Waite), exp(r) as its Taylor sum to degree 7 on |r| <= ln 2
// / 2. Relative error below 2e-7. x is held to [-87, 88], where the result neither vanishes nor overflows;
// NaN stays NaN.
NR_HD inline float exponential(float x) {
    const float held = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    const float y = held * 1.44269504088896341f;
    const int32_t n = static_cast<int32_t>(y + (y < 0 ? -0.5f : 0.5f));
    const float whole = static_cast<float>(n);
    const float r = (held - whole * 0.693359375f) - whole * -2.12194440054690583e-4f;
    const float sum =
        1.0f +
        r * (1.0f + r * (0.5f + r * (1.6666667e-1f +
                                     r * (4.1666667e-2f +
                                          r * (8.3333333e-3f + r * (1.3888889e-3f + r * 1.9841270e-4f))))));
    const uint32_t bits = (static_cast<uint32_t>(n) + 127u) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof(power));
    return sum * power;
}

NR_HD inline double exponential(double x) { return std::exp(x); }

// log(1 + e) for e in [0, 1]: 2 artanh(e / (2 + e)), whose series in (e / (2 + e))^2 <= 1 / 9 ends below
// 1e-8.
NR_HD inline float log_one_plus(float e) {
    const float s = e / (2.0f + e);
    const float q = s * s;
    return 2.0f * s *
           (1.0f +
            q * (1.0f / 3 +
                 q * (1.0f / 5 + q * (1.0f / 7 + q * (1.0f / 9 + q * (1.0f / 11 +
                                                                      q * (1.0f / 13 + q * (1.0f / 15))))))));
}

NR_HD inline double log_one_plus(double e) { return std::log1p(e); }

}  // namespace nr
