// Derivatives with respect to the coordinates: from voxels back to what the caller gave, and the sums that
// make the affine's.
#pragma once

#include "cpu/sampling_cells.h"

namespace nr {

// Calls body with a value of the image's type in memory.
template <class T, class Body>
void with_storage(Storage storage, Body&& body) {
    if constexpr (std::is_same_v<T, float>) {
        if (storage == Storage::kBfloat16) return body(Bfloat16{});
        if (storage == Storage::kFloat16) return body(Float16{});
    }
    body(T{});
}

// g with respect to voxel coordinates -> grad with respect to the caller's.
template <class T, int ND>
void store_gradient(const Source<T, ND>& source, const ImageAxes<ND>& axes, const Block<ND>& block,
                    const T (&g)[ND][kBlock], T* grad_coordinates) {
    const int n = block.length;
    if (source.shape.normalized) {
        T grad[kBlock * ND];
        for (int k = 0; k < ND; ++k) {
            const T scale = unnormalize_slope(static_cast<T>(axes.size[k]), source.shape.align_corners);
            for (int i = 0; i < kBlock; ++i) grad[i * ND + (ND - 1 - k)] = g[k][i] * scale;
        }
        std::copy_n(grad, n * ND, grad_coordinates + block.point * ND);
        return;
    }
    for (int j = 0; j < ND; ++j) {
        T* grad = grad_coordinates + j * source.points + block.point;
        if (!source.affine) {
            store_block(g[j], n, grad);
            continue;
        }
        T sum[kBlock];
        for (int i = 0; i < kBlock; ++i) {
            sum[i] = 0;
            for (int k = 0; k < ND; ++k) sum[i] += source.affine[k * (ND + 1) + j] * g[k][i];
        }
        store_block(sum, n, grad);
    }
}

// The affine's gradient: sums in double, a few lanes of every entry for every chunk, added up in order.
template <int ND>
class AffineSums {
public:
    static constexpr int kLanes = 8, kEntries = ND * (ND + 1), kSums = kEntries * kLanes;

    AffineSums(bool wanted, int64_t items) : sums_(wanted ? items * kSums : 0, 0.0) {}

    // Sums of one chunk, or null.
    double* item(int64_t item) { return sums_.empty() ? nullptr : &sums_[item * kSums]; }

    // Adds the products of one block to entry (k, j).
    template <class T>
    static void add(double* sums, int k, int j, int n, const T (&a)[kBlock], const T (&b)[kBlock]) {
        double* lanes = sums + (k * (ND + 1) + j) * kLanes;
        int i = 0;
        for (; i + kLanes <= n; i += kLanes)
            for (int lane = 0; lane < kLanes; ++lane)
                lanes[lane] += static_cast<double>(a[i + lane]) * b[i + lane];
        for (; i < n; ++i) lanes[i % kLanes] += static_cast<double>(a[i]) * b[i];
    }

    // g with respect to voxel coordinates times the points (p, 1).
    template <class T>
    static void add_points(double* sums, const Source<T, ND>& source, const Block<ND>& block,
                           const T (&g)[ND][kBlock]) {
        T p[ND][kBlock], one[kBlock];
        source.positions(block, p);
        std::fill_n(one, kBlock, T(1));
        for (int k = 0; k < ND; ++k)
            for (int j = 0; j <= ND; ++j) add(sums, k, j, block.length, g[k], j < ND ? p[j] : one);
    }

    template <class T>
    void finish(int64_t batch, int64_t chunks, T* grad_affine) const {
        if (sums_.empty()) return;
        for (int64_t b = 0; b < batch; ++b)
            for (int e = 0; e < kEntries; ++e) {
                double sum = 0;
                for (int64_t chunk = 0; chunk < chunks; ++chunk)
                    for (int lane = 0; lane < kLanes; ++lane)
                        sum += sums_[(b * chunks + chunk) * kSums + e * kLanes + lane];
                grad_affine[b * kEntries + e] = static_cast<T>(sum);
            }
    }

private:
    std::vector<double> sums_;
};

}  // namespace nr
