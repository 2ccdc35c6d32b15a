// grid_sample and warp: a gather.
#include "cuda/sampling_points.h"

namespace nr {
namespace gpu {

namespace {

template <class S, class T, int ND, class Place, bool with_gradient>
__global__ void __launch_bounds__(kSampleThreads)
    forward(const Source<T, ND> source, int64_t blocks, const S* image, T* out, T* gradient) {
    const int64_t b = blockIdx.x / blocks;
    const int64_t p = (blockIdx.x - b * blocks) * kSampleThreads + threadIdx.x;
    if (p >= source.points) return;
    T x[ND];
    source.locate(b, p, x);
    const Place place(source, x);
    for (int64_t plane = b * source.channels; plane < (b + 1) * source.channels; ++plane) {
        T v[Place::kCorners];
        gather(place, image + plane * source.voxels, v);
        out[plane * source.points + p] = place.value(v);
        if constexpr (with_gradient) {
            T g[ND];
            interpolate_gradient(v, place.weight, g);
            place.apply_slopes(g);
            source.store_gradient(b, p, g, gradient + plane * ND * source.points);
        }
    }
}

template <class S, class T, int ND>
void run(const SampleShape& shape, const S* image, const T* coordinates, const T* affine, T* out, T* gradient,
         cudaStream_t stream) {
    const Source<T, ND> source(shape, coordinates, affine);
    const int64_t blocks = source.blocks(kSampleThreads);
    const auto kernel = shape.nearest ? forward<S, T, ND, Nearest<T, ND>, false>
                        : gradient    ? forward<S, T, ND, Cell<T, ND>, true>
                                      : forward<S, T, ND, Cell<T, ND>, false>;
    launch(kernel, shape.batch * blocks, kSampleThreads, 0, stream, source, blocks, image, out, gradient);
}

}  // namespace

template <class T>
void sample_forward(const SampleShape& shape, const void* image, const T* coordinates, const T* affine,
                    T* out, T* gradient, Where where) {
    const DeviceGuard guard(where.device);
    with_storage<T>(shape.storage, [&](auto stored) {
        using S = decltype(stored);
        const auto call = shape.in.size() == 2 ? run<S, T, 2> : run<S, T, 3>;
        call(shape, static_cast<const S*>(image), coordinates, affine, out, gradient,
             static_cast<cudaStream_t>(where.stream));
    });
}

template void sample_forward<float>(const SampleShape&, const void*, const float*, const float*, float*,
                                    float*, Where);
template void sample_forward<double>(const SampleShape&, const void*, const double*, const double*, double*,
                                     double*, Where);

}  // namespace gpu
}  // namespace nr
