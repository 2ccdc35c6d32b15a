// CUDA's small vectors, with their alignment.
#pragma once

#include <cstdint>

#define NR_VECTORS(name, scalar)                                                                  \
    struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };                                  \
    struct name##3 { scalar x, y, z; };                                                           \
    struct alignas(sizeof(scalar) == 8 ? 16 : 4 * sizeof(scalar)) name##4 { scalar x, y, z, w; }; \
    inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                          \
    inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }             \
    inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
NR_VECTORS(float, float)
NR_VECTORS(double, double)
NR_VECTORS(int, int)
NR_VECTORS(uint, unsigned)
NR_VECTORS(uchar, unsigned char)
#undef NR_VECTORS
