// The adjoint of sampling: of its values, and of its gradients with respect to a displacement.
#include "cpu/sampling_gradient.h"
#include "cpu/sampling_scatter.h"

namespace nr {

namespace {

// What arrives at one channel of a block: a at the values, q at the derivatives with respect to voxel
// coordinates (before padding); r is q with respect to the displacement.
template <class T, int ND>
struct Arriving {
    T a[kBlock], q[ND][kBlock], r[ND][kBlock];

    void load(const Source<T, ND>& source, const Block<ND>& block, const Cells<T, ND>& cells, int64_t plane,
              const T* grad_out, const T* grad_gradient) {
        copy_block(grad_out + plane * source.points + block.point, block.length, a);
        if (!grad_gradient) return;
        for (int j = 0; j < ND; ++j)
            copy_block(grad_gradient + (plane * ND + j) * source.points + block.point, block.length, r[j]);
        for (int k = 0; k < ND; ++k)
            for (int i = 0; i < kBlock; ++i) {
                q[k][i] = source.affine ? T(0) : r[k][i];
                if (source.affine)
                    for (int j = 0; j < ND; ++j) q[k][i] += source.affine[k * (ND + 1) + j] * r[j][i];
            }
        apply_slopes<T, ND>(cells, q);
    }
};

template <class S, class T, int ND>
void coordinates_backward(const SampleShape& shape, const T* grad_out, const T* grad_gradient, const S* image,
                          const T* coordinates, const T* affine, T* grad_coordinates, T* grad_affine,
                          int threads) {
    const ImageAxes<ND> axes(shape.in);
    const Source<T, ND> first(shape, coordinates, affine, 0);
    const Chunks chunks(first.points, first.row(), kChunkPoints);
    AffineSums<ND> sums(grad_affine != nullptr, shape.batch * chunks.count);
    for_chunks(shape.batch, chunks, threads, [&](int64_t batch, int64_t chunk, int64_t item) {
        const Source<T, ND> source(shape, coordinates, affine, batch);
        T x[ND][kBlock], v[1 << ND][kBlock], g[ND][kBlock], own[ND][kBlock];
        Cells<T, ND> cells;
        Arriving<T, ND> arriving;
        source.walk(chunks.begin(chunk), chunks.end(chunk), [&](const Block<ND>& block) {
            source.locate(block, axes, x);
            find_cells<T, ND>(shape, axes, x, cells);
            for (int k = 0; k < ND; ++k) std::fill_n(g[k], kBlock, T(0));
            for (int64_t c = 0; c < shape.channels; ++c) {
                const int64_t plane = batch * shape.channels + c;
                arriving.load(source, block, cells, plane, grad_out, grad_gradient);
                gather<S, T, ND>(axes, cells, image + plane * axes.voxels, v);
                for (int i = 0; i < kBlock; ++i) {
                    T corner[1 << ND], w[ND], d[ND];
                    take(v, i, corner);
                    take(cells.weight, i, w);
                    interpolate_gradient(corner, w, d);
                    for (int k = 0; k < ND; ++k) {
                        g[k][i] += arriving.a[i] * d[k];
                        own[k][i] = d[k];
                    }
                }
                if (!grad_gradient) continue;
                for (int i = 0; i < kBlock; ++i) {
                    T corner[1 << ND], w[ND], q[ND], h[ND];
                    take(v, i, corner);
                    take(cells.weight, i, w);
                    take(arriving.q, i, q);
                    interpolate_curvature(corner, w, q, h);
                    for (int k = 0; k < ND; ++k) g[k][i] += h[k];
                }
                if (!grad_affine) continue;
                apply_slopes<T, ND>(cells, own);
                for (int k = 0; k < ND; ++k)
                    for (int j = 0; j < ND; ++j)
                        sums.add(sums.item(item), k, j, block.length, own[k], arriving.r[j]);
            }
            apply_slopes<T, ND>(cells, g);
            if (grad_coordinates)
                store_gradient<T, ND>(source, axes, block, g, grad_coordinates + batch * ND * source.points);
            if (grad_affine) sums.add_points(sums.item(item), source, block, g);
        });
    });
    sums.finish(shape.batch, chunks.count, grad_affine);
}

template <class T, int ND>
void image_backward(const SampleShape& shape, const T* grad_out, const T* grad_gradient, const T* coordinates,
                    const T* affine, T* grad_image, int threads) {
    const ImageAxes<ND> axes(shape.in);
    const auto corners = [&](int64_t batch, int64_t c, const Source<T, ND>& source, const Block<ND>& block,
                             const Cells<T, ND>& cells, T(&v)[1 << ND][kBlock]) {
        Arriving<T, ND> arriving;
        arriving.load(source, block, cells, batch * shape.channels + c, grad_out, grad_gradient);
        for (int i = 0; i < kBlock; ++i) {
            T corner[1 << ND], w[ND], q[ND];
            take(cells.weight, i, w);
            if (grad_gradient) {
                take(arriving.q, i, q);
                spread(arriving.a[i], q, w, corner);
            } else {
                spread(arriving.a[i], w, corner);
            }
            for (int j = 0; j < (1 << ND); ++j) v[j][i] = corner[j];
        }
    };
    const auto fill = [&](int64_t batch, const Source<T, ND>& source, int64_t begin, int64_t end,
                          Slab<T>& slab) {
        if (shape.nearest)
            scatter_nearest<T, ND>(shape, axes, source, begin, end,
                                   grad_out + batch * shape.channels * source.points, slab);
        else
            scatter_chunk<T, ND>(shape, axes, source, batch, begin, end, slab, corners);
    };
    scatter_image<T, ND>(shape, coordinates, affine, grad_image, threads, fill);
}

}  // namespace

template <class T>
void sample_backward(const SampleShape& shape, const T* grad_out, const T* grad_gradient, const void* image,
                     const T* coordinates, const T* affine, T* grad_image, T* grad_coordinates,
                     T* grad_affine, int threads) {
    if (empty(shape)) return;
    if ((grad_coordinates || grad_affine) && !shape.nearest) {  // nearest is piecewise constant
        with_storage<T>(shape.storage, [&](auto stored) {
            using S = decltype(stored);
            const auto run =
                shape.in.size() == 2 ? coordinates_backward<S, T, 2> : coordinates_backward<S, T, 3>;
            run(shape, grad_out, grad_gradient, static_cast<const S*>(image), coordinates, affine,
                grad_coordinates, grad_affine, threads);
        });
    }
    if (!grad_image) return;
    const auto run = shape.in.size() == 2 ? image_backward<T, 2> : image_backward<T, 3>;
    run(shape, grad_out, grad_gradient, coordinates, affine, grad_image, threads);
}

template void sample_backward<float>(const SampleShape&, const float*, const float*, const void*,
                                     const float*, const float*, float*, float*, float*, int);
template void sample_backward<double>(const SampleShape&, const double*, const double*, const void*,
                                      const double*, const double*, double*, double*, double*, int);

}  // namespace nr
