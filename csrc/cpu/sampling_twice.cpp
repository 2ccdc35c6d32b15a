// The adjoint of sampling's adjoint. With t the direction that arrives at the gradient of the coordinates and
// H the image that arrives at the gradient of the image, it is the derivative of
//   L = sum over points and channels of grad_out * (H(x) + t . dI/dx (x)).
#include "cpu/sampling_gradient.h"
#include "cpu/sampling_scatter.h"

namespace nr {

namespace {

// t in voxel coordinates: the same for all channels. What arrives at the affine's gradient comes in through
// the points that it was multiplied with.
template <class T, int ND>
void direction(const Source<T, ND>& source, const ImageAxes<ND>& axes, const Block<ND>& block,
               const Cells<T, ND>& cells, const SampleTangent<T>& tangent, int64_t batch, T (&u)[ND][kBlock],
               T (&t)[ND][kBlock]) {
    const T* from = tangent.coordinates ? tangent.coordinates + batch * ND * source.points : nullptr;
    const T* matrix = tangent.affine ? tangent.affine + batch * ND * (ND + 1) : nullptr;
    for (int k = 0; k < ND; ++k) std::fill_n(u[k], kBlock, T(0));
    for (int k = 0; k < ND; ++k) std::fill_n(t[k], kBlock, T(0));
    if (source.shape.normalized) {
        for (int k = 0; k < ND && from; ++k) {
            const T scale = unnormalize_slope(static_cast<T>(axes.size[k]), source.shape.align_corners);
            for (int i = 0; i < block.length; ++i)
                t[k][i] = scale * from[(block.point + i) * ND + (ND - 1 - k)];
        }
    } else {
        for (int j = 0; j < ND && from; ++j)
            copy_block(from + j * source.points + block.point, block.length, u[j]);
        for (int k = 0; k < ND; ++k)
            for (int i = 0; i < kBlock; ++i) {
                t[k][i] = source.affine ? T(0) : u[k][i];
                if (source.affine)
                    for (int j = 0; j < ND; ++j) t[k][i] += source.affine[k * (ND + 1) + j] * u[j][i];
            }
    }
    if (matrix) {
        T p[ND][kBlock];
        source.positions(block, p);
        for (int k = 0; k < ND; ++k)
            for (int i = 0; i < kBlock; ++i) {
                t[k][i] += matrix[k * (ND + 1) + ND];
                for (int j = 0; j < ND; ++j) t[k][i] += matrix[k * (ND + 1) + j] * p[j][i];
            }
    }
    apply_slopes<T, ND>(cells, t);
}

template <class T>
struct Gradients {
    T* grad_out;
    T* coordinates;
    T* affine;
};

template <class T, int ND>
void points_twice(const SampleShape& shape, const SampleTangent<T>& tangent, const T* grad_out,
                  const T* image, const T* coordinates, const T* affine, const Gradients<T>& result,
                  int threads) {
    const ImageAxes<ND> axes(shape.in);
    const Source<T, ND> first(shape, coordinates, affine, 0);
    const Chunks chunks(first.points, first.row(), kChunkPoints);
    AffineSums<ND> sums(result.affine != nullptr, shape.batch * chunks.count);
    for_chunks(shape.batch, chunks, threads, [&](int64_t batch, int64_t chunk, int64_t item) {
        const Source<T, ND> source(shape, coordinates, affine, batch);
        T x[ND][kBlock], v[1 << ND][kBlock], a[kBlock], value[kBlock];
        T u[ND][kBlock], t[ND][kBlock];
        T once[ND][kBlock], g[ND][kBlock];  // the first and the second derivative, summed over the channels
        Cells<T, ND> cells;
        source.walk(chunks.begin(chunk), chunks.end(chunk), [&](const Block<ND>& block) {
            source.locate(block, axes, x);
            find_cells<T, ND>(shape, axes, x, cells);
            direction<T, ND>(source, axes, block, cells, tangent, batch, u, t);
            for (int k = 0; k < ND; ++k) {
                std::fill_n(once[k], kBlock, T(0));
                std::fill_n(g[k], kBlock, T(0));
            }
            for (int64_t c = 0; c < shape.channels; ++c) {
                const int64_t plane = batch * shape.channels + c;
                copy_block(grad_out + plane * source.points + block.point, block.length, a);
                gather<T, T, ND>(axes, cells, image + plane * axes.voxels, v);
                for (int i = 0; i < kBlock; ++i) {
                    T corner[1 << ND], w[ND], direction[ND], d[ND], h[ND];
                    take(v, i, corner);
                    take(cells.weight, i, w);
                    take(t, i, direction);
                    interpolate_gradient(corner, w, d);
                    interpolate_curvature(corner, w, direction, h);
                    value[i] = 0;
                    for (int k = 0; k < ND; ++k) {
                        // padding's zero slope has made the direction 0; the image may be infinite there
                        value[i] += direction[k] != 0 ? direction[k] * d[k] : T(0);
                        once[k][i] += a[i] * d[k];
                        g[k][i] += a[i] * h[k];
                    }
                }
                if (tangent.image) {
                    gather<T, T, ND>(axes, cells, tangent.image + plane * axes.voxels, v);
                    for (int i = 0; i < kBlock; ++i) {
                        T corner[1 << ND], w[ND], d[ND];
                        take(v, i, corner);
                        take(cells.weight, i, w);
                        value[i] += interpolate(corner, w);
                        interpolate_gradient(corner, w, d);
                        for (int k = 0; k < ND; ++k) g[k][i] += a[i] * d[k];
                    }
                }
                if (result.grad_out)
                    store_block(value, block.length, result.grad_out + plane * source.points + block.point);
            }
            apply_slopes<T, ND>(cells, once);
            apply_slopes<T, ND>(cells, g);
            T* grad = result.coordinates ? result.coordinates + batch * ND * source.points : nullptr;
            if (grad) store_gradient<T, ND>(source, axes, block, g, grad);
            if (grad && tangent.affine) {
                const T* matrix = tangent.affine + batch * ND * (ND + 1);
                for (int j = 0; j < ND; ++j)
                    for (int i = 0; i < block.length; ++i)
                        for (int k = 0; k < ND; ++k)
                            grad[j * source.points + block.point + i] +=
                                matrix[k * (ND + 1) + j] * once[k][i];
            }
            if (!result.affine) return;
            sums.add_points(sums.item(item), source, block, g);
            for (int k = 0; k < ND; ++k)
                for (int j = 0; j < ND; ++j) sums.add(sums.item(item), k, j, block.length, once[k], u[j]);
        });
    });
    sums.finish(shape.batch, chunks.count, result.affine);
}

template <class T, int ND>
void image_twice(const SampleShape& shape, const SampleTangent<T>& tangent, const T* grad_out,
                 const T* coordinates, const T* affine, T* grad_image, int threads) {
    const ImageAxes<ND> axes(shape.in);
    const auto corners = [&](int64_t batch, int64_t c, const Source<T, ND>& source, const Block<ND>& block,
                             const Cells<T, ND>& cells, T(&v)[1 << ND][kBlock]) {
        T a[kBlock], u[ND][kBlock], t[ND][kBlock];
        direction<T, ND>(source, axes, block, cells, tangent, batch, u, t);
        copy_block(grad_out + (batch * shape.channels + c) * source.points + block.point, block.length, a);
        for (int i = 0; i < kBlock; ++i) {
            T corner[1 << ND], w[ND], q[ND];
            take(cells.weight, i, w);
            for (int k = 0; k < ND; ++k) q[k] = a[i] * t[k][i];
            spread(T(0), q, w, corner);
            for (int j = 0; j < (1 << ND); ++j) v[j][i] = corner[j];
        }
    };
    const auto fill = [&](int64_t batch, const Source<T, ND>& source, int64_t begin, int64_t end,
                          Slab<T>& slab) {
        scatter_chunk<T, ND>(shape, axes, source, batch, begin, end, slab, corners);
    };
    scatter_image<T, ND>(shape, coordinates, affine, grad_image, threads, fill);
}

template <class T, int ND>
void twice(const SampleShape& shape, const SampleTangent<T>& tangent, const T* grad_out, const T* image,
           const T* coordinates, const T* affine, T* grad_grad_out, T* grad_image, T* grad_coordinates,
           T* grad_affine, int threads) {
    if (grad_grad_out || grad_coordinates || grad_affine)
        points_twice<T, ND>(shape, tangent, grad_out, image, coordinates, affine,
                            {grad_grad_out, grad_coordinates, grad_affine}, threads);
    if (grad_image && (tangent.coordinates || tangent.affine))
        image_twice<T, ND>(shape, tangent, grad_out, coordinates, affine, grad_image, threads);
}

}  // namespace

template <class T>
void sample_twice(const SampleShape& shape, const SampleTangent<T>& tangent, const T* grad_out,
                  const T* image, const T* coordinates, const T* affine, T* grad_grad_out, T* grad_image,
                  T* grad_coordinates, T* grad_affine, int threads) {
    if (empty(shape)) return;
    const auto run = shape.in.size() == 2 ? twice<T, 2> : twice<T, 3>;
    run(shape, tangent, grad_out, image, coordinates, affine, grad_grad_out, grad_image, grad_coordinates,
        grad_affine, threads);
}

template void sample_twice<float>(const SampleShape&, const SampleTangent<float>&, const float*, const float*,
                                  const float*, const float*, float*, float*, float*, float*, int);
template void sample_twice<double>(const SampleShape&, const SampleTangent<double>&, const double*,
                                   const double*, const double*, const double*, double*, double*, double*,
                                   double*, int);

}  // namespace nr
