// grid_sample and warp: one walk over blocks of output points.
#include "cpu/sampling_gradient.h"

namespace nr {

namespace {

template <class S, class T, int ND>
void forward(const SampleShape& shape, const S* image, const T* coordinates, const T* affine, T* out,
             T* gradient, int threads) {
    const ImageAxes<ND> axes(shape.in);
    const Source<T, ND> first(shape, coordinates, affine, 0);
    const Chunks chunks(first.points, first.row(), kChunkPoints);
    for_chunks(shape.batch, chunks, threads, [&](int64_t batch, int64_t chunk, int64_t) {
        const Source<T, ND> source(shape, coordinates, affine, batch);
        T x[ND][kBlock], v[1 << ND][kBlock], value[kBlock], g[ND][kBlock];
        Cells<T, ND> cells;
        int32_t voxel[kBlock], inside[kBlock];
        source.walk(chunks.begin(chunk), chunks.end(chunk), [&](const Block<ND>& block) {
            source.locate(block, axes, x);
            if (shape.nearest)
                find_nearest<T, ND>(shape, axes, x, voxel, inside);
            else
                find_cells<T, ND>(shape, axes, x, cells);
            for (int64_t c = 0; c < shape.channels; ++c) {
                const int64_t plane = batch * shape.channels + c;
                const S* from = image + plane * axes.voxels;
                if (shape.nearest) {
                    for (int i = 0; i < kBlock; ++i) value[i] = widen(from[voxel[i]]);
                    for (int i = 0; i < kBlock; ++i) value[i] = inside[i] ? value[i] : T(0);
                } else {
                    gather<S, T, ND>(axes, cells, from, v);
                    for (int i = 0; i < kBlock; ++i) {
                        T corner[1 << ND], w[ND];
                        take(v, i, corner);
                        take(cells.weight, i, w);
                        value[i] = interpolate(corner, w);
                    }
                }
                store_block(value, block.length, out + plane * source.points + block.point);
                if (!gradient) continue;
                for (int i = 0; i < kBlock; ++i) {
                    T corner[1 << ND], w[ND], d[ND];
                    take(v, i, corner);
                    take(cells.weight, i, w);
                    interpolate_gradient(corner, w, d);
                    for (int k = 0; k < ND; ++k) g[k][i] = d[k];
                }
                apply_slopes<T, ND>(cells, g);
                store_gradient<T, ND>(source, axes, block, g, gradient + plane * ND * source.points);
            }
        });
    });
}

template <class S, class T>
void forward(const SampleShape& shape, const void* image, const T* coordinates, const T* affine, T* out,
             T* gradient, int threads) {
    const auto run = shape.in.size() == 2 ? forward<S, T, 2> : forward<S, T, 3>;
    run(shape, static_cast<const S*>(image), coordinates, affine, out, gradient, threads);
}

}  // namespace

template <class T>
void sample_forward(const SampleShape& shape, const void* image, const T* coordinates, const T* affine,
                    T* out, T* gradient, int threads) {
    if (empty(shape)) return;
    with_storage<T>(shape.storage, [&](auto stored) {
        forward<decltype(stored), T>(shape, image, coordinates, affine, out, gradient, threads);
    });
}

template void sample_forward<float>(const SampleShape&, const void*, const float*, const float*, float*,
                                    float*, int);
template void sample_forward<double>(const SampleShape&, const void*, const double*, const double*, double*,
                                     double*, int);

}  // namespace nr
