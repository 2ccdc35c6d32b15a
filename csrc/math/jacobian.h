// Determinant of I + J and its derivative (the cofactor matrix), J row-major: J[c * N + k] = du_c / dx_k.
#pragma once

#include "math/config.h"

namespace nr {

template <class T>
NR_HD inline T map_determinant(const T (&j)[4]) {
    return (1 + j[0]) * (1 + j[3]) - j[1] * j[2];
}

template <class T>
NR_HD inline T map_determinant(const T (&j)[9]) {
    const T a = 1 + j[0], e = 1 + j[4], i = 1 + j[8];
    return a * (e * i - j[5] * j[7]) - j[1] * (j[3] * i - j[5] * j[6]) + j[2] * (j[3] * j[7] - e * j[6]);
}

// cofactor[c * N + k] = d det(I + J) / d J[c * N + k]
template <class T>
NR_HD inline void map_cofactor(const T (&j)[4], T (&cofactor)[4]) {
    cofactor[0] = 1 + j[3];
    cofactor[1] = -j[2];
    cofactor[2] = -j[1];
    cofactor[3] = 1 + j[0];
}

template <class T>
NR_HD inline void map_cofactor(const T (&j)[9], T (&cofactor)[9]) {
    const T a = 1 + j[0], e = 1 + j[4], i = 1 + j[8];
    cofactor[0] = e * i - j[5] * j[7];
    cofactor[1] = j[5] * j[6] - j[3] * i;
    cofactor[2] = j[3] * j[7] - e * j[6];
    cofactor[3] = j[2] * j[7] - j[1] * i;
    cofactor[4] = a * i - j[2] * j[6];
    cofactor[5] = j[1] * j[6] - a * j[7];
    cofactor[6] = j[1] * j[5] - j[2] * e;
    cofactor[7] = j[2] * j[3] - a * j[5];
    cofactor[8] = a * e - j[1] * j[3];
}

}  // namespace nr
