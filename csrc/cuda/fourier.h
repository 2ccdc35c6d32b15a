// Sine and cosine of a Fourier feature's phase.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "math/sincos.h"

namespace nr {
namespace gpu {

__device__ __forceinline__ void phase_sin_cos(float phase, float& s, float& c) {
    if (std::fabs(phase) <= kSinCosLimit) {
        sin_cos(phase, s, c);
        return;
    }
    s = std::sin(phase);
    c = std::cos(phase);
}

__device__ __forceinline__ void phase_sin_cos(double phase, double& s, double& c) { sin_cos(phase, s, c); }

}  // namespace gpu
}  // namespace nr
