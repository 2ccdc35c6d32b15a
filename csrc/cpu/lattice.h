// Difference schemes on one axis of a lattice: D[i] = factor[i] (u[upper[i]] - u[lower[i]]), and their
// adjoints.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/ops.h"

namespace nr {

template <class T>
struct Stencil {
    std::vector<int64_t> lower, upper;
    std::vector<T> factor;
    // The adjoint: grad[p] = before[p] P[p - 1] + self[p] P[p] + after[p] P[p + 1].
    std::vector<T> before, self, after;

    // The missing neighbour of an end is replaced by the one-sided difference that exists there.
    Stencil(int64_t size, double spacing, Scheme scheme)
        : lower(size), upper(size), factor(size), before(size), self(size), after(size) {
        for (int64_t i = 0; i < size; ++i) {
            lower[i] = scheme == Scheme::kForward ? i : i - 1;
            upper[i] = scheme == Scheme::kBackward ? i : i + 1;
            if (lower[i] < 0) lower[i] = 0, upper[i] = 1;
            if (upper[i] >= size) lower[i] = size - 2, upper[i] = size - 1;
            if (size == 1) lower[i] = upper[i] = 0;
            const int64_t width = upper[i] - lower[i];
            factor[i] = width > 0 ? static_cast<T>(1 / (width * spacing)) : T(0);
        }
        for (int64_t i = 0; i < size && size > 1; ++i) {
            add(lower[i], i, -factor[i]);
            add(upper[i], i, factor[i]);
        }
    }

private:
    void add(int64_t p, int64_t i, T weight) { (i < p ? before : i == p ? self : after)[p] += weight; }
};

}  // namespace nr
