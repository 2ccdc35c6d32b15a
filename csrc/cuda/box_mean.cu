// Box means: box sums over the voxels inside the image, divided by their number. The adjoint sums the
// quotients of gradient and number of voxels in the mirrored boxes. Values that are not finite would stay in
// the running sums: they are summed as zeros, and counted in a field of their own.
#include "cuda/box_mean.h"
#include "cuda/boxes.h"
#include "math/box.h"

namespace nr {
namespace gpu {

namespace {

struct MeanBoxes {
    Boxes around;  // the boxes whose means are meant
    int64_t voxels, channels;

    explicit MeanBoxes(const BoxShape& s) : voxels(1), channels(s.channels) {
        const size_t axes = s.size.size();
        BoxAxis* of[3] = {&around.z, &around.y, &around.x};
        for (size_t k = 3 - axes; k < 3; ++k) {  // 2-D is one plane of 3-D
            const int64_t n = s.size[k + axes - 3], w = s.window[k + axes - 3];
            if (n > INT32_MAX / 4) throw std::runtime_error("box_mean: an axis is too long");
            *of[k] = BoxAxis(n, n, (w - 1) / 2, w / 2);
            voxels *= n;
        }
    }
    Boxes summed(bool adjoint) const {
        return adjoint ? Boxes{around.z.adjoint(), around.y.adjoint(), around.x.adjoint()} : around;
    }
    // 1 / number of voxels in the box around one.
    __device__ double inverse(int z, int y, int x) const {
        return 1 / (count(around.z, z) * count(around.y, y) * count(around.x, x));
    }

private:
    __device__ static double count(const BoxAxis& axis, int i) {
        return static_cast<double>(voxels_inside(axis.in, i, axis.before, axis.after));
    }
};

template <class T, bool adjoint>
struct ReadVoxels {
    static constexpr int kFields = 2;
    const T* image;
    const MeanBoxes& boxes;

    __device__ uint32_t read(int plane, int y, int x, double* v) const {
        const int64_t row = int64_t{1} * plane * boxes.around.y.in + y;
        const double value = static_cast<double>(image[row * boxes.around.x.in + x]);
        const bool finite = value - value == 0;
        v[0] = !finite ? 0.0 : adjoint ? value * boxes.inverse(plane, y, x) : value;
        v[1] = finite ? 0.0 : 1.0;
        return value != 0 ? 1u : 0u;
    }
    __device__ static void clear(uint32_t count, double* s) { s[0] = count != 0 ? s[0] : 0.0; }
};

template <class T, bool adjoint>
struct Divide {
    const MeanBoxes& boxes;
    T* out;

    __device__ void operator()(int plane, int y, int x, const double* s) {
        const int64_t row = int64_t{1} * plane * boxes.around.y.in + y;
        const double mean = adjoint ? s[0] : s[0] * boxes.inverse(plane, y, x);
        const double none = s[1] - s[1];
        out[row * boxes.around.x.in + x] = static_cast<T>(s[1] < 0.5 ? mean : none / none);  // 0 / 0: NaN
    }
};

template <class T, bool adjoint, bool in_shared>
__global__ void __launch_bounds__(kThreads, kBlocks)
    mean_of_boxes(const Plan p, const MeanBoxes boxes, const T* image, T* out) {
    NR_DYNAMIC_SHARED(shared);
    const Tile tile(p);
    const int64_t at = tile.channel * boxes.voxels;
    const ReadVoxels<T, adjoint> source{image + at, boxes};
    Divide<T, adjoint> divide{boxes, out + at};
    march(p, tile, in_shared ? shared : p.scratch + blockIdx.x * p.bytes, source, divide);
}

bool empty(const BoxShape& shape) {
    int64_t size = shape.channels;
    for (int64_t n : shape.size) size *= n;
    return size == 0;
}

Plan plan_of(const MeanBoxes& boxes, bool adjoint, int device) {
    return plan(boxes.summed(adjoint), 2, boxes.channels, 0, boxes.around.z.in, shared_memory_limit(device));
}

}  // namespace

size_t box_mean_scratch(const BoxShape& shape, int device) {
    return empty(shape) ? 0 : plan_of(MeanBoxes(shape), shape.adjoint, device).scratch_bytes();
}

template <class T>
void box_mean(const BoxShape& shape, const T* image, T* out, void* scratch, Where where) {
    if (empty(shape)) return;
    const DeviceGuard guard(where.device);
    const MeanBoxes boxes(shape);
    Plan p = plan_of(boxes, shape.adjoint, where.device);
    p.scratch = static_cast<unsigned char*>(scratch);
    const auto kernel = shape.adjoint
                            ? p.in_shared ? mean_of_boxes<T, true, true> : mean_of_boxes<T, true, false>
                        : p.in_shared ? mean_of_boxes<T, false, true>
                                      : mean_of_boxes<T, false, false>;
    launch(kernel, p.blocks, kThreads, p.shared(), static_cast<cudaStream_t>(where.stream), p, boxes, image,
           out);
}

template void box_mean<float>(const BoxShape&, const float*, float*, void*, Where);
template void box_mean<double>(const BoxShape&, const double*, double*, void*, Where);

}  // namespace gpu
}  // namespace nr
