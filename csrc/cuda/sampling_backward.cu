// The adjoint of sampling: of its values, and of its gradients with respect to a displacement. What belongs
// to a point is gathered; only the image's gradient is a scatter.
#include "cuda/sampling_affine.h"
#include "cuda/sampling_scatter.h"

namespace nr {
namespace gpu {

namespace {

struct Nothing {};

// What arrives at the forward's results; jet: at its gradients too.
template <class T, int ND, bool jet>
struct Results {
    static constexpr bool kSlopes = jet;
    const T* grad_out;
    const T* grad_gradient;

    template <class Place>
    __device__ __forceinline__ Nothing at(const Source<T, ND>&, const Place&, int64_t, int64_t) const {
        return {};
    }
    template <class Place>
    __device__ __forceinline__ Arriving<T, ND> load(Nothing, const Source<T, ND>& source, const Place& place,
                                                    int64_t b, int64_t plane, int64_t p) const {
        T r[ND];
        return load(source, place, b, plane, p, r);
    }
    // r: q with respect to the displacement
    template <class Place>
    __device__ __forceinline__ Arriving<T, ND> load(const Source<T, ND>& source, const Place& place,
                                                    int64_t b, int64_t plane, int64_t p, T (&r)[ND]) const {
        Arriving<T, ND> arriving = {gpu::load(grad_out + plane * source.points + p), {}};
        if constexpr (jet) {
            source.direction(grad_gradient + plane * ND * source.points, b, p, r, arriving.q);
            place.apply_slopes(arriving.q);
        }
        return arriving;
    }
};

template <class S, class T, int ND, bool jet, bool to_affine>
__global__ void __launch_bounds__(kSampleThreads, kSampleBlocks<T> - (jet || to_affine))
    coordinates_backward(const Source<T, ND> source, int64_t blocks, int64_t share,
                         const Results<T, ND, jet> results, const S* image, T* grad_coordinates,
                         double* partial) {
    const int64_t b = blockIdx.x / blocks, begin = (blockIdx.x - b * blocks) * share;
    const int64_t end = begin + share < source.points ? begin + share : source.points;
    AffineSums<T, ND, to_affine> sums;
    for (int64_t p = begin + threadIdx.x; p < end; p += kSampleThreads) {
        T x[ND], g[ND] = {};
        source.locate(b, p, x);
        const Cell<T, ND> cell(source, x);
        for (int64_t plane = b * source.channels; plane < (b + 1) * source.channels; ++plane) {
            T v[1 << ND], d[ND], r[ND];
            gather(cell, image + plane * source.voxels, v);
            const Arriving<T, ND> arriving = results.load(source, cell, b, plane, p, r);
            interpolate_gradient(v, cell.weight, d);
#pragma unroll
            for (int k = 0; k < ND; ++k) g[k] += arriving.a * d[k];
            if constexpr (jet) {
                T h[ND];
                interpolate_curvature(v, cell.weight, arriving.q, h);
#pragma unroll
                for (int k = 0; k < ND; ++k) g[k] += h[k];
                cell.apply_slopes(d);
                sums.add(d, r);
            }
        }
        cell.apply_slopes(g);
        if (grad_coordinates) source.store_gradient(b, p, g, grad_coordinates + b * ND * source.points);
        sums.add_points(source, b, p, g);
    }
    sums.store(partial);
}

template <class S, class T, int ND, bool jet>
void to_points(const SampleShape& shape, const Source<T, ND>& source, const Results<T, ND, jet>& results,
               const S* image, const SampleGradients<T>& gradients, cudaStream_t stream) {
    const bool to_affine = gradients.affine != nullptr;
    const int64_t share = to_affine ? kAffinePoints : kSampleThreads, blocks = source.blocks(share);
    auto* partial = static_cast<double*>(gradients.scratch);
    launch(to_affine ? coordinates_backward<S, T, ND, jet, true> : coordinates_backward<S, T, ND, jet, false>,
           shape.batch * blocks, kSampleThreads, 0, stream, source, blocks, share, results, image,
           gradients.coordinates, partial);
    if (to_affine)
        launch(finish_affine<T>, shape.batch * ND * (ND + 1), kSampleThreads, 0, stream, partial, blocks,
               ND * (ND + 1), gradients.affine);
}

template <class T, int ND, bool jet>
void run(const SampleShape& shape, const T* grad_out, const T* grad_gradient, const void* image,
         const T* coordinates, const T* affine, const SampleGradients<T>& gradients, cudaStream_t stream) {
    const Source<T, ND> source(shape, coordinates, affine);
    const Results<T, ND, jet> results = {grad_out, grad_gradient};
    if (!shape.nearest && (gradients.coordinates || gradients.affine))  // nearest is piecewise constant
        with_storage<T>(shape.storage, [&](auto stored) {
            using S = decltype(stored);
            to_points<S, T, ND, jet>(shape, source, results, static_cast<const S*>(image), gradients, stream);
        });
    if (gradients.image == nullptr) return;
    if constexpr (!jet)
        if (shape.nearest)
            return scatter_image<Nearest<T, ND>>(source, results, gradients.image, gradients.fixed_point,
                                                 stream);
    scatter_image<Cell<T, ND>>(source, results, gradients.image, gradients.fixed_point, stream);
}

}  // namespace

size_t sample_scratch(const SampleShape& shape) {
    int64_t points = 1;
    for (int64_t n : shape.out) points *= n;
    const int64_t nd = static_cast<int64_t>(shape.in.size());
    const int64_t blocks = (points + kAffinePoints - 1) / kAffinePoints;
    return static_cast<size_t>(shape.batch * blocks * nd * (nd + 1)) * sizeof(double);
}

template <class T>
void sample_backward(const SampleShape& shape, const T* grad_out, const T* grad_gradient, const void* image,
                     const T* coordinates, const T* affine, const SampleGradients<T>& gradients,
                     Where where) {
    const DeviceGuard guard(where.device);
    const bool flat = shape.in.size() == 2;
    const auto call = grad_gradient ? (flat ? run<T, 2, true> : run<T, 3, true>)
                                    : (flat ? run<T, 2, false> : run<T, 3, false>);
    call(shape, grad_out, grad_gradient, image, coordinates, affine, gradients,
         static_cast<cudaStream_t>(where.stream));
}

template void sample_backward<float>(const SampleShape&, const float*, const float*, const void*,
                                     const float*, const float*, const SampleGradients<float>&, Where);
template void sample_backward<double>(const SampleShape&, const double*, const double*, const void*,
                                      const double*, const double*, const SampleGradients<double>&, Where);

}  // namespace gpu
}  // namespace nr
