// Label images: the nearest voxel's label, or an interpolated vote. Labels are compared and copied, never
// computed with.
#include "cuda/sampling_points.h"
#include "math/vote.h"

namespace nr {
namespace gpu {

namespace {

template <class Label, class T, int ND>
__global__ void __launch_bounds__(kSampleThreads, 2)
    labels_forward(const Source<T, ND> source, bool nearest, int64_t blocks, const Label* image, Label* out) {
    const int64_t b = blockIdx.x / blocks;
    const int64_t p = (blockIdx.x - b * blocks) * kSampleThreads + threadIdx.x;
    if (p >= source.points) return;
    T x[ND];
    source.locate(b, p, x);
    const int64_t first = b * source.channels;
    if (nearest) {
        const int32_t at = Nearest<T, ND>(source, x).corner(0);
        for (int64_t plane = first; plane < first + source.channels; ++plane)
            out[plane * source.points + p] = at < 0 ? Label(0) : load(image + plane * source.voxels + at);
        return;
    }
    const Cell<T, ND> cell(source, x);
    double weight[1 << ND];
#pragma unroll
    for (int c = 0; c < 1 << ND; ++c) {
        weight[c] = 1;
#pragma unroll
        for (int k = 0; k < ND; ++k) {
            const double upper = static_cast<double>(cell.weight[k]);
            weight[c] *= c >> (ND - 1 - k) & 1 ? upper : 1 - upper;
        }
    }
    for (int64_t plane = first; plane < first + source.channels; ++plane) {
        Label label[1 << ND];
#pragma unroll
        for (int c = 0; c < 1 << ND; ++c) {
            const int32_t at = cell.corner(c);
            label[c] = at < 0 ? Label(0) : load(image + plane * source.voxels + at);
        }
        out[plane * source.points + p] = vote(label, weight);
    }
}

template <class Label, class T, int ND>
void run(const SampleShape& shape, const Label* labels, const T* coordinates, const T* affine, Label* out,
         cudaStream_t stream) {
    const Source<T, ND> source(shape, coordinates, affine);
    const int64_t blocks = source.blocks(kSampleThreads);
    launch(labels_forward<Label, T, ND>, shape.batch * blocks, kSampleThreads, 0, stream, source,
           shape.nearest, blocks, labels, out);
}

}  // namespace

template <class Label, class T>
void sample_labels(const SampleShape& shape, const Label* labels, const T* coordinates, const T* affine,
                   Label* out, Where where) {
    const DeviceGuard guard(where.device);
    const auto call = shape.in.size() == 2 ? run<Label, T, 2> : run<Label, T, 3>;
    call(shape, labels, coordinates, affine, out, static_cast<cudaStream_t>(where.stream));
}

#define NR_LABELS(Label)                                                                                    \
    template void sample_labels<Label, float>(const SampleShape&, const Label*, const float*, const float*, \
                                              Label*, Where);                                               \
    template void sample_labels<Label, double>(const SampleShape&, const Label*, const double*,             \
                                               const double*, Label*, Where);
NR_LABELS(uint8_t)
NR_LABELS(int8_t)
NR_LABELS(int16_t)
NR_LABELS(int32_t)
NR_LABELS(int64_t)
NR_LABELS(float)
NR_LABELS(double)
#undef NR_LABELS

}  // namespace gpu
}  // namespace nr
