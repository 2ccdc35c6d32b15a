// Penalties on the determinant of a map's Jacobian and their derivatives.
#pragma once

#include "math/config.h"

namespace nr {

enum class Penalty { kRelu = 0, kUnit = 1 };

// relu(threshold - det); NaN stays NaN.
template <class T>
NR_HD inline T relu_penalty(T det, T threshold) {
    const T below = threshold - det;
    return below < 0 ? T(0) : below;
}

template <class T>
NR_HD inline T relu_penalty_slope(T det, T threshold) {
    return threshold - det <= 0 ? T(0) : T(-1);
}

// |det - 1|
template <class T>
NR_HD inline T unit_penalty(T det) {
    const T away = det - 1;
    return away < 0 ? -away : away;
}

template <class T>
NR_HD inline T unit_penalty_slope(T det) {
    return det > 1 ? T(1) : det < 1 ? T(-1) : T(0);
}

template <class T>
NR_HD inline T penalty_value(Penalty penalty, T det, T threshold) {
    return penalty == Penalty::kRelu ? relu_penalty(det, threshold) : unit_penalty(det);
}

template <class T>
NR_HD inline T penalty_slope(Penalty penalty, T det, T threshold) {
    return penalty == Penalty::kRelu ? relu_penalty_slope(det, threshold) : unit_penalty_slope(det);
}

}  // namespace nr
