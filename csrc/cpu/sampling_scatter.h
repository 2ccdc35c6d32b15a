// The gradient of the image: a scatter that gives the same sums for every number of threads. Each chunk of
// points adds into a private slab that covers the planes it reaches; slabs are then added up in the order of
// the chunks. As many slabs exist at a time as there are threads.
#pragma once

#include "cpu/sampling_cells.h"

namespace nr {

constexpr int64_t kScatterChunks = 16;

template <class T>
struct Slab {
    int32_t first = 0, planes = 0;
    std::vector<T> sums;  // (channels, planes, plane voxels)
};

// Makes room for the planes that the points of [begin, end) add to.
template <class T, int ND>
void open_slab(const SampleShape& shape, const ImageAxes<ND>& axes, const Source<T, ND>& source,
               int64_t begin, int64_t end, Slab<T>& slab) {
    int32_t first = axes.size[0], last = 0;
    T x[ND][kBlock], slope[kBlock];
    source.walk(begin, end, [&](const Block<ND>& block) {
        source.locate(block, axes, x);
        pad(shape.padding, shape.align_corners, static_cast<T>(axes.size[0]), x[0], slope);
        for (int i = 0; i < kBlock; ++i) {
            const int32_t plane = static_cast<int32_t>(x[0][i] + 2) - 2;
            const int32_t loaded = std::min(std::max(plane, 0), std::max(axes.size[0] - 2, 0));
            first = std::min(first, loaded);
            last = std::max(last, std::min(loaded + 1, axes.size[0] - 1));
        }
    });
    // One to spare below, as the sum that rounds towards minus infinity may itself be rounded up.
    slab.first = std::max(first - 1, 0);
    slab.planes = last - slab.first + 1;
    slab.sums.assign(shape.channels * slab.planes * axes.stride[0], T(0));
}

// corners(batch, c, source, block, cells, v) sets what the points of a block add to their cells' corners.
template <class T, int ND, class Corners>
void scatter_chunk(const SampleShape& shape, const ImageAxes<ND>& axes, const Source<T, ND>& source,
                   int64_t batch, int64_t begin, int64_t end, Slab<T>& slab, Corners&& corners) {
    open_slab<T, ND>(shape, axes, source, begin, end, slab);
    const int64_t channel_size = slab.planes * static_cast<int64_t>(axes.stride[0]);
    // Addressed by the offset in the image; as a number, since it may lie before the slab.
    const int64_t shift = slab.first * static_cast<int64_t>(axes.stride[0]);
    T x[ND][kBlock], v[1 << ND][kBlock];
    Cells<T, ND> cells;
    source.walk(begin, end, [&](const Block<ND>& block) {
        source.locate(block, axes, x);
        find_cells<T, ND>(shape, axes, x, cells);
        for (int i = 0; i < kBlock; ++i) cells.base[i] -= static_cast<int32_t>(shift);
        for (int64_t c = 0; c < shape.channels; ++c) {
            corners(batch, c, source, block, cells, v);
            scatter<T, ND>(axes, cells, block.length, v, slab.sums.data() + c * channel_size);
        }
    });
}

// As above for the nearest voxel, which takes the whole of grad_out (channels, points).
template <class T, int ND>
void scatter_nearest(const SampleShape& shape, const ImageAxes<ND>& axes, const Source<T, ND>& source,
                     int64_t begin, int64_t end, const T* grad_out, Slab<T>& slab) {
    open_slab<T, ND>(shape, axes, source, begin, end, slab);
    const int64_t plane = axes.stride[0], channel_size = slab.planes * plane, shift = slab.first * plane;
    T x[ND][kBlock];
    int32_t voxel[kBlock], inside[kBlock];
    source.walk(begin, end, [&](const Block<ND>& block) {
        source.locate(block, axes, x);
        find_nearest<T, ND>(shape, axes, x, voxel, inside);
        for (int64_t c = 0; c < shape.channels; ++c)
            for (int i = 0; i < block.length; ++i)
                if (inside[i])
                    slab.sums[c * channel_size + voxel[i] - shift] +=
                        grad_out[c * source.points + block.point + i];
    });
}

// fill(batch, source, begin, end, slab) opens the slab and adds the points of [begin, end) of a batch item.
template <class T, int ND, class Fill>
void scatter_image(const SampleShape& shape, const T* coordinates, const T* affine, T* grad_image,
                   int threads, Fill&& fill) {
    const ImageAxes<ND> axes(shape.in);
    const Source<T, ND> first(shape, coordinates, affine, 0);
    const int64_t share = (first.points + kScatterChunks - 1) / kScatterChunks;
    const Chunks chunks(first.points, first.row(), std::max<int64_t>(1 << 14, share));
    const int64_t items = shape.batch * chunks.count;
    std::vector<Slab<T>> slabs(std::min<int64_t>(std::max(1, threads), items));
    const int64_t wave = static_cast<int64_t>(slabs.size());
    for (int64_t start = 0; start < items; start += wave) {
        const int64_t count = std::min(wave, items - start);
        parallel_for(count, threads, 1, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t batch = (start + i) / chunks.count, chunk = (start + i) % chunks.count;
                const Source<T, ND> source(shape, coordinates, affine, batch);
                fill(batch, source, chunks.begin(chunk), chunks.end(chunk), slabs[i]);
            }
        });
        const int64_t plane = axes.stride[0];
        parallel_for(shape.channels * plane, threads, 1 << 12, [&](int64_t begin, int64_t end, int) {
            // Split across the planes' voxels: every thread adds all slabs, in order, to its own part.
            for (int64_t i = 0; i < count; ++i) {
                const int64_t batch = (start + i) / chunks.count;
                for (int64_t at = begin; at < end;) {
                    const int64_t c = at / plane, from = at % plane;
                    const int64_t length = std::min(end - at, plane - from);
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

}  // namespace nr
