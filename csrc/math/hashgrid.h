// The multi-resolution feature grid (Mueller et al. 2022): where a point lies in a level and what its corners
// weigh.
#pragma once

#include <cstdint>

#include "math/config.h"

namespace nr {

// A coordinate in [-1, 1] as a share of the axis. Outside, the position is clamped and no longer depends on
// x. The comparisons send NaN to 0.
template <class T>
NR_HD inline T unit_coordinate(T x) {
    const T u = (x + 1) * T(0.5);
    return u > 0 ? (u < 1 ? u : T(1)) : T(0);
}

template <class T>
NR_HD inline T unit_slope(T x) {
    return (x >= -1 && x <= 1) ? T(0.5) : T(0);
}

// Cell and fraction along one axis of `vertices` >= 1 vertices.
template <class T>
NR_HD inline int32_t grid_cell(T unit, int32_t vertices, T& fraction) {
    const T position = unit * static_cast<T>(vertices - 1);
    int32_t cell = static_cast<int32_t>(position);
    const int32_t last = vertices > 2 ? vertices - 2 : 0;
    cell = cell < last ? cell : last;
    fraction = position - static_cast<T>(cell);
    return cell;
}

// Weight of a cell's upper vertex along one axis, and its derivatives to the coordinate; the lower vertex has
// 1 minus the value, and minus the derivatives.
template <class T>
struct AxisWeight {
    T value, slope, curvature;
};

// rate: d fraction / d coordinate, (vertices - 1) unit_slope(x). Smoothstep takes t^2 (3 - 2 t) of the
// fraction.
template <class T>
NR_HD inline AxisWeight<T> axis_weight(T fraction, T rate, bool smooth) {
    if (!smooth) return {fraction, rate, T(0)};
    return {fraction * fraction * (3 - 2 * fraction), 6 * fraction * (1 - fraction) * rate,
            (6 - 12 * fraction) * rate * rate};
}

NR_HD inline uint32_t dense_index(int32_t i, int32_t j, int32_t vertices) { return i * vertices + j; }
NR_HD inline uint32_t dense_index(int32_t i, int32_t j, int32_t k, int32_t vertices) {
    return (i * vertices + j) * vertices + k;
}
NR_HD inline uint32_t hashed_index(uint32_t i, uint32_t j, uint32_t mask) {
    return (i ^ (j * 2654435761u)) & mask;
}
NR_HD inline uint32_t hashed_index(uint32_t i, uint32_t j, uint32_t k, uint32_t mask) {
    return (i ^ (j * 2654435761u) ^ (k * 805459861u)) & mask;
}

}  // namespace nr
