// Sums whose terms arrive in any order: floating ones by atomics, or, for the same bits every time, multiples
// of a power of two in 64 bits. That power is 2^-s with s the largest for which `terms` times the largest
// contribution stays below 2^62, and is found on the device.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/launch.h"

namespace nr {
namespace gpu {

// `largest`: the largest contribution's magnitude, as the bits of a double. If it is not finite, every sum
// becomes NaN.
template <class T, bool fixed>
struct Sums;

template <class T>
struct Sums<T, false> {
    using Type = T;
    __device__ Sums(double, const uint64_t*) {}
    __device__ T of(T value) const { return value; }
};

template <class T>
struct Sums<T, true> {
    using Type = unsigned long long;  // wraps, so it carries signed sums as well
    double scale, unscale;

    __device__ Sums(double terms, const uint64_t* largest) {
        double most;
        const uint64_t bits = *largest;
        memcpy(&most, &bits, sizeof most);
        const double bound = most * terms;
        const bool finite = bound <= 1e300;
        int exponent = 0;
        std::frexp(bound, &exponent);
        scale = finite ? std::ldexp(1.0, 61 - exponent) : 0;
        unscale = finite ? std::ldexp(1.0, exponent - 61) : NAN;
        if (scale > 1e300) scale = unscale = 1;  // all zeros, or as good as
    }
    __device__ Type of(T value) const {
        return scale == 0 ? 0 : static_cast<Type>(static_cast<long long>(std::rint(scale * value)));
    }
    __device__ T back(Type sum) const {
        return static_cast<T>(static_cast<double>(static_cast<long long>(sum)) * unscale);
    }
};

template <class T>
__global__ void clear_largest(T* largest) {
    *largest = 0;
}

// Every thread's candidates come together in one number: the order of doubles that are not negative is that
// of their bits. NaN counts as infinite.
struct Largest {
    double most = 0;

    __device__ void see(double magnitude) {
        most = magnitude <= most ? most : magnitude;
        if (!(magnitude <= 1e300)) most = HUGE_VAL;
    }
    // All threads of a warp come here.
    __device__ void tell(uint64_t* largest) {
        for (int offset = 16; offset > 0; offset /= 2) {
            const double other = __shfl_down_sync(0xffffffffu, most, offset);
            most = other > most ? other : most;
        }
        uint64_t bits;
        memcpy(&bits, &most, sizeof bits);
        if (threadIdx.x % 32 == 0)
            atomicMax(reinterpret_cast<unsigned long long*>(largest), static_cast<unsigned long long>(bits));
    }
};

// to += sums, which become zeros again.
template <class T>
__global__ void __launch_bounds__(256)
    add_fixed(int64_t count, double terms, unsigned long long* sums, const uint64_t* largest, T* to) {
    const Sums<T, true> scaled(terms, largest);
    const int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x;
    if (i >= count) return;
    to[i] += scaled.back(sums[i]);
    sums[i] = 0;
}

}  // namespace gpu
}  // namespace nr
