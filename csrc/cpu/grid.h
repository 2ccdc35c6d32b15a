// Blocks of points in feature grids: cells and weights are computed for a block at once (vectorised), the
// corners are then gathered or scattered point by point.
//
// Channels: channel 0 is the value, channel 1 + k the derivative to coordinate k. C = 1 computes values
// alone, C = 1 + N all of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/grid_cells.h"
#include "cpu/grid_vectors.h"
#include "cpu/loops.h"
#include "math/multilinear.h"

namespace nr {

// F features an entry at compile time where it is a usual number; 0 reads it at run time.
template <int F>
struct FeatureCount {
    static constexpr int value = F;
};

template <class Body>
inline void with_features(int features, Body&& body) {
    switch (features) {
        case 1: body(FeatureCount<1>{}); break;
        case 2: body(FeatureCount<2>{}); break;
        case 4: body(FeatureCount<4>{}); break;
        case 8: body(FeatureCount<8>{}); break;
        default: body(FeatureCount<0>{}); break;
    }
}

// One entry as a short vector, so that it is read and written in one piece.
template <class T, int F>
struct Entry {
    typedef T Vec __attribute__((vector_size(F * sizeof(T))));
};

// Some features of some points, element point * features + feature: the arithmetic then runs over plain
// arrays, and memory is touched an entry's features at a time.
template <class T, int N, int F>
struct GridElements {
    static constexpr int kAhead = 12;
    static constexpr int capacity = 8 * kGridBlock;
    static constexpr int corners = 1 << N;
    int first, points;    // of the block
    int column, columns;  // features
    alignas(64) T corner[corners][capacity];
    alignas(64) T upper[N][capacity], slope[N][capacity];

    int width() const { return F ? F : columns; }
    int size() const { return points * width(); }

    // Runs body over parts of the block that fit.
    template <class Body>
    void each(int count, int first_feature, int last_feature, Body&& body) {
        const int widest = F ? F : 64;
        for (column = first_feature; column < last_feature; column += widest) {
            columns = std::min(widest, last_feature - column);
            const int most = capacity / width();
            for (first = 0; first < count; first += most) {
                points = std::min(most, count - first);
                body();
            }
        }
    }

    void weights(const GridCells<T, N>& cells) {
        for (int d = 0; d < N; ++d)
            for (int p = 0; p < points; ++p)
                for (int f = 0; f < width(); ++f) {
                    upper[d][p * width() + f] = cells.upper[d][first + p];
                    slope[d][p * width() + f] = cells.slope[d][first + p];
                }
    }

    // Asks for the entries of the point that comes kAhead points later: tables outgrow the caches.
    template <int write, class U>
    void prefetch(const GridCells<T, N>& cells, U* entries, int64_t features, int p) const {
        if (p + kAhead >= points) return;
        for (int c = 0; c < corners; ++c)
            __builtin_prefetch(entries + cells.index[c][first + p + kAhead] * features + column, write);
    }

    void load(const GridCells<T, N>& cells, const T* entries, int64_t features) {
        const int count = points, start = first;
        for (int p = 0; p < count; ++p) {
            prefetch<0>(cells, entries, features, p);
            for (int c = 0; c < corners; ++c)
                std::memcpy(corner[c] + p * width(), entries + cells.index[c][start + p] * features + column,
                            width() * sizeof(T));
        }
    }

    // Adds the corners to their entries.
    void add(const GridCells<T, N>& cells, T* entries, int64_t features) const {
        const int count = points, start = first;
        for (int p = 0; p < count; ++p) {
            prefetch<1>(cells, entries, features, p);
            for (int c = 0; c < corners; ++c) {
                T* entry = entries + cells.index[c][start + p] * features + column;
                const T* more = corner[c] + p * width();
                if constexpr (F > 0) {
                    typename Entry<T, F>::Vec sum, add;
                    std::memcpy(&sum, entry, sizeof(sum));
                    std::memcpy(&add, more, sizeof(add));
                    sum += add;
                    std::memcpy(entry, &sum, sizeof(sum));
                } else {
                    for (int f = 0; f < width(); ++f) entry[f] += more[f];
                }
            }
        }
    }
};

// Values alone of entries that fill a vector need no arrays of elements: what each corner of a point's cell
// counts is computed for a block at once, and entries go through registers.
template <class T, int N, int F, int C>
constexpr bool kWholeEntries = C == 1 && F * sizeof(T) >= 16;
constexpr int64_t kFar = 1 << 20;  // bytes of a level beyond which entries are asked for ahead
constexpr int kPointsAhead = 12;

template <class T, int N>
struct CornerWeights {
    static constexpr int corners = 1 << N;
    alignas(64) T of[corners][kGridBlock];

    CornerWeights(const GridCells<T, N>& cells, int count) {
        for (int c = 0; c < corners; ++c)
            for (int p = 0; p < count; ++p) {
                T weight = 1;
                for (int d = 0; d < N; ++d)
                    weight *= (c >> (N - 1 - d)) & 1 ? cells.upper[d][p] : 1 - cells.upper[d][p];
                of[c][p] = weight;
            }
    }
};

// Asks for the entries of the point that comes kPointsAhead points later.
template <int write, int F, class T, int N, class U>
inline void prefetch_entries(const GridCells<T, N>& cells, U* entries, int p, int count) {
    if (p + kPointsAhead >= count) return;
    for (int c = 0; c < cells.corners; ++c)
        __builtin_prefetch(entries + static_cast<int64_t>(cells.index[c][p + kPointsAhead]) * F, write);
}

template <class T, int N, int F>
inline void gather_entries(const GridLevel& level, const GridCells<T, N>& cells, int count, const T* entries,
                           T* out, int64_t stride) {
    using Vec = typename Entry<T, F>::Vec;
    const CornerWeights<T, N> weight(cells, count);
    const bool far = level.entries * F * static_cast<int64_t>(sizeof(T)) > kFar;
    for (int p = 0; p < count; ++p) {
        if (far) prefetch_entries<0, F>(cells, entries, p, count);
        Vec sums[2] = {};  // two chains of additions
        for (int c = 0; c < cells.corners; ++c) {
            Vec entry;
            std::memcpy(&entry, entries + static_cast<int64_t>(cells.index[c][p]) * F, sizeof(entry));
            sums[c & 1] += entry * weight.of[c][p];
        }
        sums[0] += sums[1];
        std::memcpy(out + p * stride, &sums[0], sizeof(Vec));
    }
}

template <class T, int N, int F>
inline void scatter_entries(const GridLevel& level, const GridCells<T, N>& cells, int count, const T* grad,
                            T* entries) {
    using Vec = typename Entry<T, F>::Vec;
    const CornerWeights<T, N> weight(cells, count);
    const bool far = level.entries * F * static_cast<int64_t>(sizeof(T)) > kFar;
    for (int p = 0; p < count; ++p) {
        if (far) prefetch_entries<1, F>(cells, entries, p, count);
        Vec more;
        std::memcpy(&more, grad + p * F, sizeof(more));
        for (int c = 0; c < cells.corners; ++c) {
            T* entry = entries + static_cast<int64_t>(cells.index[c][p]) * F;
            Vec sum;
            std::memcpy(&sum, entry, sizeof(sum));
            sum += more * weight.of[c][p];
            std::memcpy(entry, &sum, sizeof(sum));
        }
    }
}

// Copies a channel's elements from or to rows of a stride.
template <class Elements, class T>
inline void to_rows(const Elements& part, const T* from, T* rows, int64_t stride) {
    for (int p = 0; p < part.points; ++p)
        std::memcpy(rows + (part.first + p) * stride + part.column, from + p * part.width(),
                    part.width() * sizeof(T));
}
template <class Elements, class T>
inline void from_rows(const Elements& part, const T* rows, int64_t stride, T* to) {
    for (int p = 0; p < part.points; ++p)
        std::memcpy(to + p * part.width(), rows + (part.first + p) * stride + part.column,
                    part.width() * sizeof(T));
}

// out[channel * channel_stride + p * stride + f] for up to kGridBlock points in one level.
template <class T, int N, int F, int C>
inline void grid_gather(const GridLevel& level, int features, const T* x, int count, const T* table, T* out,
                        int64_t stride, int64_t channel_stride) {
    using Cell = Multilinear<T, N>;
    GridCells<T, N> cells;
    cells.locate(level, x, count);
    if constexpr (kWholeEntries<T, N, F, C>) {
        gather_entries<T, N, F>(level, cells, count, table + level.offset * F, out, stride);
        return;
    }
    if constexpr (F == 0)
        if (whole_vectors<T>(features)) {
            gather_vectors<T, N, C>(cells, features, count, table + level.offset * features, out, stride,
                                    channel_stride);
            return;
        }
    GridElements<T, N, F> part;
    alignas(64) T result[C][part.capacity];
    part.each(count, 0, features, [&] {
        part.weights(cells);
        part.load(cells, table + level.offset * features, features);
        const int size = part.size();
        NR_INDEPENDENT
        for (int i = 0; i < size; ++i) {
            T e[part.corners], w[N];
            for (int c = 0; c < part.corners; ++c) e[c] = part.corner[c][i];
            for (int d = 0; d < N; ++d) w[d] = part.upper[d][i];
            if constexpr (C == 1) {
                result[0][i] = Cell::value(e, w);
            } else {
                T step[N];
                result[0][i] = Cell::differences(e, w, step);
                for (int d = 0; d < N; ++d) result[1 + d][i] = step[d] * part.slope[d][i];
            }
        }
        for (int k = 0; k < C; ++k) to_rows(part, result[k], out + k * channel_stride, stride);
    });
}

// Adds the gradient of one level's entries for n points: grad[(p * C + channel) * features + f], features of
// [first, last) alone. One thread owns a level (or its features), so that no two threads meet and the sum has
// one order.
template <class T, int N, int F, int C>
inline void grid_scatter(const GridLevel& level, int features, int first, int last, const T* x, int64_t n,
                         const T* grad, T* grad_table) {
    T* entries = grad_table + level.offset * features;
    GridCells<T, N> cells;
    GridElements<T, N, F> part;
    alignas(64) T gradient[C][part.capacity];
    for (int64_t start = 0; start < n; start += kGridBlock) {
        const int count = static_cast<int>(std::min<int64_t>(kGridBlock, n - start));
        cells.locate(level, x + start * N, count);
        if constexpr (kWholeEntries<T, N, F, C>) {
            scatter_entries<T, N, F>(level, cells, count, grad + start * F, entries);
            continue;
        }
        if constexpr (F == 0)
            if (whole_vectors<T>(last - first)) {
                scatter_vectors<T, N, C>(cells, features, first, last, count, grad + start * C * features,
                                         entries);
                continue;
            }
        part.each(count, first, last, [&] {
            part.weights(cells);
            for (int k = 0; k < C; ++k)
                from_rows(part, grad + (start * C + k) * features, static_cast<int64_t>(C) * features,
                          gradient[k]);
            const int size = part.size();
            NR_INDEPENDENT
            for (int i = 0; i < size; ++i) {
                T e[part.corners], w[N], h[N];
                for (int d = 0; d < N; ++d) {
                    w[d] = part.upper[d][i];
                    h[d] = C == 1 ? T(0) : gradient[C == 1 ? 0 : 1 + d][i] * part.slope[d][i];
                }
                Multilinear<T, N>::adjoint(w, gradient[0][i], h, e);
                for (int c = 0; c < part.corners; ++c) part.corner[c][i] = e[c];
            }
            part.add(cells, entries, features);
        });
    }
}

// Adds to grad_x[p * N + d] for up to kGridBlock points; grad as out in grid_gather. Through the derivative
// channels come the interpolation's second derivatives.
template <class T, int N, int F, int C>
inline void grid_gradient_x(const GridLevel& level, int features, const T* x, int count, const T* table,
                            const T* grad, int64_t stride, int64_t channel_stride, T* grad_x) {
    using Cell = Multilinear<T, N>;
    GridCells<T, N> cells;
    cells.locate(level, x, count);
    if constexpr (F == 0)
        if (whole_vectors<T>(features)) {
            gradient_x_vectors<T, N, C>(cells, features, count, table + level.offset * features, grad, stride,
                                        channel_stride, grad_x);
            return;
        }
    GridElements<T, N, F> part;
    alignas(64) T gradient[C][part.capacity], result[N][part.capacity], bend[N][part.capacity];
    part.each(count, 0, features, [&] {
        part.weights(cells);
        part.load(cells, table + level.offset * features, features);
        for (int k = 0; k < C; ++k) from_rows(part, grad + k * channel_stride, stride, gradient[k]);
        if (C > 1)
            for (int d = 0; d < N; ++d)
                for (int i = 0; i < part.size(); ++i)
                    bend[d][i] = cells.curvature[d][part.first + i / part.width()];
        const int size = part.size();
        NR_INDEPENDENT
        for (int i = 0; i < size; ++i) {
            T e[part.corners], w[N], step[N], mixed[2 * N - 3];
            for (int c = 0; c < part.corners; ++c) e[c] = part.corner[c][i];
            for (int d = 0; d < N; ++d) w[d] = part.upper[d][i];
            Cell::differences(e, w, step);
            Cell::mixed(e, w, mixed);
            for (int d = 0; d < N; ++d) {
                T sum = gradient[0][i] * part.slope[d][i] * step[d];
                if constexpr (C > 1)
                    for (int k = 0; k < N; ++k)
                        sum += gradient[1 + k][i] *
                               (k == d ? bend[d][i] * step[d]
                                       : part.slope[d][i] * part.slope[k][i] * mixed[d + k - 1]);
                result[d][i] = sum;
            }
        }
        for (int p = 0; p < part.points; ++p)
            for (int d = 0; d < N; ++d) {
                T sum = 0;
                for (int f = 0; f < part.width(); ++f) sum += result[d][p * part.width() + f];
                grad_x[(part.first + p) * N + d] += sum;
            }
    });
}

}  // namespace nr
