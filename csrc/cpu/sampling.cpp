// grid_sample and warp: one walk over blocks of output points. Work is cut into chunks whose size depends on
// the shape alone, so that sums over chunks come out the same for every number of threads.
#include <limits>

#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/sampling_block.h"

namespace nr {

namespace {

// Points of one batch item cut into whole rows, about 2^14 points each.
struct Chunks {
    int64_t points, size, count;

    Chunks(int64_t points, int64_t row, int64_t wanted) : points(points) {
        size = std::max<int64_t>(1, wanted / std::max<int64_t>(1, row)) * row;
        if (row > 4 * wanted) size = wanted;
        count = size > 0 ? (points + size - 1) / size : 0;
    }
    int64_t begin(int64_t chunk) const { return chunk * size; }
    int64_t end(int64_t chunk) const { return std::min(points, (chunk + 1) * size); }
};

constexpr int64_t kChunkPoints = 1 << 14;

template <class T, int ND>
void forward(const SampleShape& shape, const T* image, const T* coordinates, const T* affine, T* out,
             int threads) {
    const ImageAxes<ND> axes(shape.in);
    const Source<T, ND> first(shape, coordinates, affine, 0);
    const Chunks chunks(first.points, first.row, kChunkPoints);
    parallel_for(shape.batch * chunks.count, threads, 1, [&](int64_t begin, int64_t end, int) {
        T x[ND][kBlock], v[1 << ND][kBlock], value[kBlock];
        Cells<T, ND> cells;
        int32_t voxel[kBlock], inside[kBlock];
        for (int64_t item = begin; item < end; ++item) {
            const int64_t batch = item / chunks.count, chunk = item % chunks.count;
            const Source<T, ND> source(shape, coordinates, affine, batch);
            int n = 0;
            for (int64_t point = chunks.begin(chunk); point < chunks.end(chunk); point += n) {
                n = source.length(point, chunks.end(chunk));
                source.locate(point, n, axes, x);
                if (shape.nearest)
                    find_nearest<T, ND>(shape, axes, x, voxel, inside);
                else
                    find_cells<T, ND>(shape, axes, x, cells);
                for (int64_t c = 0; c < shape.channels; ++c) {
                    const T* plane = image + (batch * shape.channels + c) * axes.voxels;
                    if (shape.nearest) {
                        for (int i = 0; i < kBlock; ++i) value[i] = plane[voxel[i]];
                        for (int i = 0; i < kBlock; ++i) value[i] = inside[i] ? value[i] : T(0);
                    } else {
                        gather<T, ND>(axes, cells, plane, v);
                        for (int i = 0; i < kBlock; ++i) {
                            T corner[1 << ND], w[ND];
                            for (int j = 0; j < (1 << ND); ++j) corner[j] = v[j][i];
                            for (int k = 0; k < ND; ++k) w[k] = cells.weight[k][i];
                            value[i] = interpolate(corner, w);
                        }
                    }
                    std::copy_n(value, n, out + (batch * shape.channels + c) * source.points + point);
                }
            }
        }
    });
}

// Gradient with respect to the voxel coordinates of a block, summed over the channels.
template <class T, int ND>
void coordinate_gradient(const SampleShape& shape, const ImageAxes<ND>& axes, const Cells<T, ND>& cells,
                         int n, const T* grad_out, int64_t points, const T* image, T (&g)[ND][kBlock]) {
    T v[1 << ND][kBlock], upstream[kBlock] = {};
    for (int k = 0; k < ND; ++k) std::fill_n(g[k], kBlock, T(0));
    for (int64_t c = 0; c < shape.channels; ++c) {
        std::copy_n(grad_out + c * points, n, upstream);
        gather<T, ND>(axes, cells, image + c * axes.voxels, v);
        for (int i = 0; i < kBlock; ++i) {
            T corner[1 << ND], w[ND], d[ND];
            for (int j = 0; j < (1 << ND); ++j) corner[j] = v[j][i];
            for (int k = 0; k < ND; ++k) w[k] = cells.weight[k][i];
            interpolate_gradient(corner, w, d);
            for (int k = 0; k < ND; ++k) g[k][i] += upstream[i] * d[k];
        }
    }
    // A select rather than a product: a coordinate that padding moved has no gradient even where the image is
    // not finite.
    for (int k = 0; k < ND; ++k) {
        for (int i = 0; i < kBlock; ++i)
            g[k][i] = cells.slope[k][i] != 0 ? g[k][i] * cells.slope[k][i] : T(0);
        std::fill(g[k] + n, g[k] + kBlock, T(0));
    }
}

constexpr int kLanes = 8;  // separate sums of every entry of the affine's gradient

// From voxel coordinates back to what the caller gave; adds this block's share of the affine's gradient.
template <class T, int ND>
void store_gradient(const Source<T, ND>& source, const ImageAxes<ND>& axes, int64_t point, int n,
                    const T (&g)[ND][kBlock], T* grad_coordinates, double* grad_affine) {
    if (source.shape.normalized) {
        T* grad = grad_coordinates + point * ND;
        for (int k = 0; k < ND; ++k) {
            const T scale = unnormalize_slope(static_cast<T>(axes.size[k]), source.shape.align_corners);
            for (int i = 0; i < n; ++i) grad[i * ND + (ND - 1 - k)] = g[k][i] * scale;
        }
        return;
    }
    if (grad_coordinates) {
        for (int j = 0; j < ND; ++j) {
            T* grad = grad_coordinates + j * source.points + point;
            if (!source.affine) {
                std::copy_n(g[j], n, grad);
                continue;
            }
            for (int i = 0; i < n; ++i) {
                T sum = 0;
                for (int k = 0; k < ND; ++k) sum += source.affine[k * (ND + 1) + j] * g[k][i];
                grad[i] = sum;
            }
        }
    }
    if (grad_affine) {
        T p[ND][kBlock];
        source.positions(point, n, p);
        for (int k = 0; k < ND; ++k)
            for (int j = 0; j <= ND; ++j) {
                double* sums = grad_affine + (k * (ND + 1) + j) * kLanes;
                for (int i = 0; i < kBlock; i += kLanes)
                    for (int lane = 0; lane < kLanes; ++lane)
                        sums[lane] += static_cast<double>(g[k][i + lane]) * (j < ND ? p[j][i + lane] : T(1));
            }
    }
}

template <class T, int ND>
void coordinates_backward(const SampleShape& shape, const T* grad_out, const T* image, const T* coordinates,
                          const T* affine, T* grad_coordinates, T* grad_affine, int threads) {
    if (shape.nearest) return;  // piecewise constant
    constexpr int kEntries = ND * (ND + 1), kSums = kEntries * kLanes;
    const ImageAxes<ND> axes(shape.in);
    const Source<T, ND> first(shape, coordinates, affine, 0);
    const Chunks chunks(first.points, first.row, kChunkPoints);
    std::vector<double> partial(grad_affine ? shape.batch * chunks.count * kSums : 0, 0.0);
    parallel_for(shape.batch * chunks.count, threads, 1, [&](int64_t begin, int64_t end, int) {
        T x[ND][kBlock], g[ND][kBlock];
        Cells<T, ND> cells;
        for (int64_t item = begin; item < end; ++item) {
            const int64_t batch = item / chunks.count, chunk = item % chunks.count;
            const Source<T, ND> source(shape, coordinates, affine, batch);
            T* grad = grad_coordinates ? grad_coordinates + batch * ND * source.points : nullptr;
            int n = 0;
            for (int64_t point = chunks.begin(chunk); point < chunks.end(chunk); point += n) {
                n = source.length(point, chunks.end(chunk));
                source.locate(point, n, axes, x);
                find_cells<T, ND>(shape, axes, x, cells);
                coordinate_gradient<T, ND>(shape, axes, cells, n,
                                           grad_out + batch * shape.channels * source.points + point,
                                           source.points, image + batch * shape.channels * axes.voxels, g);
                store_gradient<T, ND>(source, axes, point, n, g, grad,
                                      grad_affine ? &partial[item * kSums] : nullptr);
            }
        }
    });
    if (!grad_affine) return;
    for (int64_t batch = 0; batch < shape.batch; ++batch)
        for (int e = 0; e < kEntries; ++e) {
            double sum = 0;
            for (int64_t chunk = 0; chunk < chunks.count; ++chunk)
                for (int lane = 0; lane < kLanes; ++lane)
                    sum += partial[(batch * chunks.count + chunk) * kSums + e * kLanes + lane];
            grad_affine[batch * kEntries + e] = static_cast<T>(sum);
        }
}

// --- gradient of the image: a scatter
// --------------------------------------------------------------------------- Each chunk of points adds into
// a private slab that covers the planes it reaches; slabs are then added up in the order of the chunks. As
// many slabs exist at a time as there are threads.

constexpr int64_t kScatterChunks = 16;

template <class T>
struct Slab {
    int32_t first = 0, planes = 0;
    std::vector<T> sums;  // (channels, planes, plane voxels)
};

template <class T, int ND>
void scatter_chunk(const SampleShape& shape, const ImageAxes<ND>& axes, const Source<T, ND>& source,
                   int64_t begin, int64_t end, const T* grad_out, Slab<T>& slab) {
    T x[ND][kBlock], v[1 << ND][kBlock], upstream[kBlock] = {};
    Cells<T, ND> cells;
    int32_t voxel[kBlock], inside[kBlock];
    // The outermost planes that are added to, so that the slab is no larger than needed; one to spare below,
    // as the sum that rounds towards minus infinity may itself be rounded up.
    int32_t first = axes.size[0], last = 0;
    int n = 0;
    for (int64_t point = begin; point < end; point += n) {
        n = source.length(point, end);
        source.locate(point, n, axes, x);
        T slope[kBlock];
        pad(shape.padding, shape.align_corners, static_cast<T>(axes.size[0]), x[0], slope);
        for (int i = 0; i < n; ++i) {
            const int32_t plane = static_cast<int32_t>(x[0][i] + 2) - 2;
            const int32_t loaded = std::min(std::max(plane, 0), std::max(axes.size[0] - 2, 0));
            first = std::min(first, loaded);
            last = std::max(last, std::min(loaded + 1, axes.size[0] - 1));
        }
    }
    slab.first = std::max(first - 1, 0);
    slab.planes = last - slab.first + 1;
    const int64_t plane = axes.stride[0], channel_size = slab.planes * plane;
    slab.sums.assign(shape.channels * channel_size, T(0));
    T* sums = slab.sums.data() - slab.first * plane;  // addressed by image offset
    for (int64_t point = begin; point < end; point += n) {
        n = source.length(point, end);
        source.locate(point, n, axes, x);
        if (shape.nearest) {
            find_nearest<T, ND>(shape, axes, x, voxel, inside);
            for (int64_t c = 0; c < shape.channels; ++c)
                for (int i = 0; i < n; ++i)
                    if (inside[i])
                        sums[c * channel_size + voxel[i]] += grad_out[c * source.points + point + i];
            continue;
        }
        find_cells<T, ND>(shape, axes, x, cells);
        for (int64_t c = 0; c < shape.channels; ++c) {
            std::copy_n(grad_out + c * source.points + point, n, upstream);
            for (int j = 0; j < (1 << ND); ++j)
                for (int i = 0; i < kBlock; ++i) {
                    T product = upstream[i];
                    for (int k = 0; k < ND; ++k) {
                        const bool upper = (j >> (ND - 1 - k)) & 1;
                        product *= upper ? cells.weight[k][i] : 1 - cells.weight[k][i];
                    }
                    v[j][i] = product;
                }
            scatter<T, ND>(axes, cells, n, v, sums + c * channel_size);
        }
    }
}

template <class T, int ND>
void image_backward(const SampleShape& shape, const T* grad_out, const T* coordinates, const T* affine,
                    T* grad_image, int threads) {
    const ImageAxes<ND> axes(shape.in);
    const Source<T, ND> first(shape, coordinates, affine, 0);
    const int64_t wanted =
        std::max<int64_t>(kChunkPoints, (first.points + kScatterChunks - 1) / kScatterChunks);
    const Chunks chunks(first.points, first.row, wanted);
    const int64_t items = shape.batch * chunks.count;
    std::vector<Slab<T>> slabs(std::min<int64_t>(std::max(1, threads), items));
    const int64_t wave = static_cast<int64_t>(slabs.size());
    for (int64_t start = 0; start < items; start += wave) {
        const int64_t count = std::min(wave, items - start);
        parallel_for(count, threads, 1, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t batch = (start + i) / chunks.count, chunk = (start + i) % chunks.count;
                const Source<T, ND> source(shape, coordinates, affine, batch);
                scatter_chunk<T, ND>(shape, axes, source, chunks.begin(chunk), chunks.end(chunk),
                                     grad_out + batch * shape.channels * source.points, slabs[i]);
            }
        });
        const int64_t plane = axes.stride[0];
        parallel_for(shape.channels * plane, threads, 1 << 12, [&](int64_t begin, int64_t end, int) {
            // Split across the planes' voxels: every thread adds all slabs, in order, to its own part.
            for (int64_t i = 0; i < count; ++i) {
                const int64_t batch = (start + i) / chunks.count;
                for (int64_t at = begin; at < end;) {
                    const int64_t c = at / plane, from = at % plane,
                                  length = std::min(end - at, plane - from);
                    for (int32_t z = 0; z < slabs[i].planes; ++z) {
                        const T* add = slabs[i].sums.data() + (c * slabs[i].planes + z) * plane + from;
                        T* to = grad_image + (batch * shape.channels + c) * axes.voxels +
                                (slabs[i].first + z) * plane + from;
                        for (int64_t v = 0; v < length; ++v) to[v] += add[v];
                    }
                    at += length;
                }
            }
        });
    }
}

bool empty(const SampleShape& shape) {
    int64_t size = shape.batch * shape.channels;
    for (int64_t n : shape.out) size *= n;
    return size == 0;
}

}  // namespace

template <class T>
void sample_forward(const SampleShape& shape, const T* image, const T* coordinates, const T* affine, T* out,
                    int threads) {
    if (empty(shape)) return;
    if (shape.in.size() == 2)
        forward<T, 2>(shape, image, coordinates, affine, out, threads);
    else
        forward<T, 3>(shape, image, coordinates, affine, out, threads);
}

template <class T, int ND>
void backward(const SampleShape& shape, const T* grad_out, const T* image, const T* coordinates,
              const T* affine, T* grad_image, T* grad_coordinates, T* grad_affine, int threads) {
    if (grad_coordinates || grad_affine)
        coordinates_backward<T, ND>(shape, grad_out, image, coordinates, affine, grad_coordinates,
                                    grad_affine, threads);
    if (grad_image) image_backward<T, ND>(shape, grad_out, coordinates, affine, grad_image, threads);
}

template <class T>
void sample_backward(const SampleShape& shape, const T* grad_out, const T* image, const T* coordinates,
                     const T* affine, T* grad_image, T* grad_coordinates, T* grad_affine, int threads) {
    if (empty(shape)) return;
    const auto run = shape.in.size() == 2 ? backward<T, 2> : backward<T, 3>;
    run(shape, grad_out, image, coordinates, affine, grad_image, grad_coordinates, grad_affine, threads);
}

template void sample_forward<float>(const SampleShape&, const float*, const float*, const float*, float*,
                                    int);
template void sample_forward<double>(const SampleShape&, const double*, const double*, const double*, double*,
                                     int);
template void sample_backward<float>(const SampleShape&, const float*, const float*, const float*,
                                     const float*, float*, float*, float*, int);
template void sample_backward<double>(const SampleShape&, const double*, const double*, const double*,
                                      const double*, double*, double*, double*, int);

}  // namespace nr
