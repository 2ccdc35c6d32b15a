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

// Cell and fraction along one axis of `vertices` >= 2 vertices.
template <class T>
NR_HD inline int32_t grid_cell(T unit, int32_t vertices, T& fraction) {
    const T position = unit * static_cast<T>(vertices - 1);
    int32_t cell = static_cast<int32_t>(position);
    cell = cell < vertices - 2 ? cell : vertices - 2;
    fraction = position - static_cast<T>(cell);
    return cell;
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
