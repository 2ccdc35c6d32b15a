// The adjoint of sampling's adjoint. With t the direction that arrives at the gradient of the coordinates and
// H the image that arrives at the gradient of the image, it is the derivative of
//   L = sum over points and channels of grad_out * (H(x) + t . dI/dx (x)).
#include "cuda/sampling_affine.h"
#include "cuda/sampling_scatter.h"

namespace nr {
namespace gpu {

namespace {

// A point's t in voxel coordinates, the same for all channels; u is the part that came through the caller's.
template <class T, int ND>
struct Direction {
    T t[ND], u[ND];

    // What arrives at the affine's gradient comes in through the points that it was multiplied with.
    __device__ __forceinline__ Direction(const Source<T, ND>& source, const Cell<T, ND>& cell,
                                         const SampleTangent<T>& tangent, int64_t b, int64_t p) {
#pragma unroll
        for (int k = 0; k < ND; ++k) t[k] = u[k] = 0;
        if (tangent.coordinates) source.direction(tangent.coordinates + b * ND * source.points, b, p, u, t);
        if (tangent.affine) {
            const T* matrix = tangent.affine + b * ND * (ND + 1);
            T at[ND];
            source.position(b, p, at);
#pragma unroll
            for (int k = 0; k < ND; ++k) {
                t[k] += load(matrix + k * (ND + 1) + ND);
#pragma unroll
                for (int j = 0; j < ND; ++j) t[k] += load(matrix + k * (ND + 1) + j) * at[j];
            }
        }
        cell.apply_slopes(t);
    }
};

// What the image's gradient is made of.
template <class T, int ND>
struct Tangents {
    static constexpr bool kSlopes = true;
    SampleTangent<T> tangent;
    const T* grad_out;

    __device__ __forceinline__ Direction<T, ND> at(const Source<T, ND>& source, const Cell<T, ND>& cell,
                                                   int64_t b, int64_t p) const {
        return {source, cell, tangent, b, p};
    }
    __device__ __forceinline__ Arriving<T, ND> load(const Direction<T, ND>& direction,
                                                    const Source<T, ND>& source, const Cell<T, ND>&, int64_t,
                                                    int64_t plane, int64_t p) const {
        const T a = gpu::load(grad_out + plane * source.points + p);
        Arriving<T, ND> arriving = {T(0), {}};
#pragma unroll
        for (int k = 0; k < ND; ++k) arriving.q[k] = a * direction.t[k];
        return arriving;
    }
};

template <class T, int ND, bool to_affine>
__global__ void __launch_bounds__(kSampleThreads, kSampleBlocks<T> - to_affine)
    points_twice(const Source<T, ND> source, int64_t blocks, int64_t share, const SampleTangent<T> tangent,
                 const T* grad_out, const T* image, T* grad_grad_out, T* grad_coordinates, double* partial) {
    const int64_t b = blockIdx.x / blocks, begin = (blockIdx.x - b * blocks) * share;
    const int64_t end = begin + share < source.points ? begin + share : source.points;
    AffineSums<T, ND, to_affine> sums;
    for (int64_t p = begin + threadIdx.x; p < end; p += kSampleThreads) {
        T x[ND], once[ND] = {}, g[ND] = {};  // first and second derivative, summed over the channels
        source.locate(b, p, x);
        const Cell<T, ND> cell(source, x);
        const Direction<T, ND> direction(source, cell, tangent, b, p);
        for (int64_t plane = b * source.channels; plane < (b + 1) * source.channels; ++plane) {
            const T a = load(grad_out + plane * source.points + p);
            T v[1 << ND], d[ND], h[ND], value = 0;
            gather(cell, image + plane * source.voxels, v);
            interpolate_gradient(v, cell.weight, d);
            interpolate_curvature(v, cell.weight, direction.t, h);
#pragma unroll
            for (int k = 0; k < ND; ++k) {
                // padding's zero slope has made the direction 0; the image may be infinite there
                value += direction.t[k] != 0 ? direction.t[k] * d[k] : T(0);
                once[k] += a * d[k];
                g[k] += a * h[k];
            }
            if (tangent.image) {
                gather(cell, tangent.image + plane * source.voxels, v);
                value += cell.value(v);
                interpolate_gradient(v, cell.weight, d);
#pragma unroll
                for (int k = 0; k < ND; ++k) g[k] += a * d[k];
            }
            if (grad_grad_out) grad_grad_out[plane * source.points + p] = value;
        }
        cell.apply_slopes(once);
        cell.apply_slopes(g);
        if (grad_coordinates) {
            T* to = grad_coordinates + b * ND * source.points;
            source.store_gradient(b, p, g, to);
            if (tangent.affine)
#pragma unroll
                for (int j = 0; j < ND; ++j)
#pragma unroll
                    for (int k = 0; k < ND; ++k)
                        to[j * source.points + p] +=
                            load(tangent.affine + (b * ND + k) * (ND + 1) + j) * once[k];
        }
        sums.add_points(source, b, p, g);
        sums.add(once, direction.u);
    }
    sums.store(partial);
}

template <class T, int ND>
void run(const SampleShape& shape, const SampleTangent<T>& tangent, const T* grad_out, const T* image,
         const T* coordinates, const T* affine, T* grad_grad_out, const SampleGradients<T>& gradients,
         cudaStream_t stream) {
    const Source<T, ND> source(shape, coordinates, affine);
    const bool to_affine = gradients.affine != nullptr;
    const int64_t share = to_affine ? kAffinePoints : kSampleThreads, blocks = source.blocks(share);
    auto* partial = static_cast<double*>(gradients.scratch);
    if (grad_grad_out || gradients.coordinates || to_affine)
        launch(to_affine ? points_twice<T, ND, true> : points_twice<T, ND, false>, shape.batch * blocks,
               kSampleThreads, 0, stream, source, blocks, share, tangent, grad_out, image, grad_grad_out,
               gradients.coordinates, partial);
    if (to_affine)
        launch(finish_affine<T>, shape.batch * ND * (ND + 1), kSampleThreads, 0, stream, partial, blocks,
               ND * (ND + 1), gradients.affine);
    if (gradients.image && (tangent.coordinates || tangent.affine))
        scatter_image<Cell<T, ND>>(source, Tangents<T, ND>{tangent, grad_out}, gradients.image,
                                   gradients.fixed_point, stream);
}

}  // namespace

template <class T>
void sample_twice(const SampleShape& shape, const SampleTangent<T>& tangent, const T* grad_out,
                  const T* image, const T* coordinates, const T* affine, T* grad_grad_out,
                  const SampleGradients<T>& gradients, Where where) {
    const DeviceGuard guard(where.device);
    const auto call = shape.in.size() == 2 ? run<T, 2> : run<T, 3>;
    call(shape, tangent, grad_out, image, coordinates, affine, grad_grad_out, gradients,
         static_cast<cudaStream_t>(where.stream));
}

template void sample_twice<float>(const SampleShape&, const SampleTangent<float>&, const float*, const float*,
                                  const float*, const float*, float*, const SampleGradients<float>&, Where);
template void sample_twice<double>(const SampleShape&, const SampleTangent<double>&, const double*,
                                   const double*, const double*, const double*, double*,
                                   const SampleGradients<double>&, Where);

}  // namespace gpu
}  // namespace nr
