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

// Cell and place in it along one axis. An axis of one vertex has the cell 0, whose upper corner is the lower
// one.
template <class T>
NR_HD inline int32_t grid_cell(T unit, int32_t vertices, T& place) {
    const T position = unit * static_cast<T>(vertices - 1);
    int32_t cell = static_cast<int32_t>(position);
    cell = cell < vertices - 2 ? cell : vertices - 2;
    cell = cell > 0 ? cell : 0;
    place = position - static_cast<T>(cell);
    return cell;
}

// What the upper corner weighs at a place in [0, 1] of the cell (the lower one: 1 - weight), with derivatives
// to the place.
template <class T>
struct UpperWeight {
    T value, slope, curvature;
};

template <class T>
NR_HD inline UpperWeight<T> upper_weight(T place, bool smooth) {
    if (smooth) return {place * place * (3 - 2 * place), 6 * place * (1 - place), 6 - 12 * place};
    return {place, T(1), T(0)};
}

NR_HD inline uint32_t hashed_index(uint32_t i, uint32_t j, uint32_t mask) {
    return (i ^ (j * 2654435761u)) & mask;
}
NR_HD inline uint32_t hashed_index(uint32_t i, uint32_t j, uint32_t k, uint32_t mask) {
    return (i ^ (j * 2654435761u) ^ (k * 805459861u)) & mask;
}

}  // namespace nr
