// Sine and cosine of one argument together.
#pragma once

#include <cmath>

#include "math/config.h"

namespace nr {

// Beyond this the two-step reduction of the float version loses accuracy: callers fall back to the library.
constexpr float kSinCosLimit = 8192.0f;

// Float: reduction to [-pi/4, pi/4] by pi/2 in three parts (Cody and Waite), then minimax polynomials of
// degree 7 and 8. Error below 1.5e-7 for |x| <= kSinCosLimit. Written without branches, so that loops over it
// vectorise.
NR_HD inline void sin_cos(float x, float& s, float& c) {
    const float y = x * 0.636619772367581343f;
    const int q = static_cast<int>(y + (y < 0 ? -0.5f : 0.5f));
    const float n = static_cast<float>(q);
    const float r = ((x - n * 1.5703125f) - n * 4.837512969970703125e-4f) - n * 7.549789948768648e-8f;
    const float r2 = r * r;
    const float sine = r + r * r2 * (-1.6666654611e-1f + r2 * (8.3321608736e-3f - 1.9515295891e-4f * r2));
    const float cosine =
        1.0f - 0.5f * r2 +
        r2 * r2 * (4.166664568298827e-2f + r2 * (-1.388731625493765e-3f + 2.443315711809948e-5f * r2));
    const float a = (q & 1) ? cosine : sine;
    const float b = (q & 1) ? sine : cosine;
    s = (q & 2) ? -a : a;
    c = ((q + 1) & 2) ? -b : b;
}

NR_HD inline void sin_cos(double x, double& s, double& c) {
    s = std::sin(x);
    c = std::cos(x);
}

// s[i], c[i] = sin, cos(scale * x[i]); x may be s.
template <class T>
inline void sin_cos_block(const T* x, T scale, T* s, T* c, int count) {
    for (int i = 0; i < count; ++i) {
        T sine, cosine;
        sin_cos(scale * x[i], sine, cosine);
        s[i] = sine;
        c[i] = cosine;
    }
}

template <>
inline void sin_cos_block<float>(const float* x, float scale, float* s, float* c, int count) {
    int large = 0;
    for (int i = 0; i < count; ++i) large += !(std::fabs(scale * x[i]) <= kSinCosLimit);
    if (large) {
        for (int i = 0; i < count; ++i) {
            const float argument = scale * x[i];
            s[i] = std::sin(argument);
            c[i] = std::cos(argument);
        }
        return;
    }
    for (int i = 0; i < count; ++i) {
        float sine, cosine;
        sin_cos(scale * x[i], sine, cosine);
        s[i] = sine;
        c[i] = cosine;
    }
}

}  // namespace nr
