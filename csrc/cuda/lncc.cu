// Local normalised cross-correlation: box sums of f, w, ff, ww, fw streamed through the volume; the backward
// pass streams the boxes of the derivatives with respect to those sums (the adjoint of a box is the box with
// its sides swapped). Blocks write partial sums that a second kernel adds in order: no atomics, and the
// number of windows stays on the device.
#include <algorithm>

#include "cuda/lncc_fields.h"
#include "cuda/reduce.h"

namespace nr {
namespace gpu {

namespace {

bool empty(const LnccShape& shape) {
    int64_t size = shape.batch * shape.channels;
    for (int64_t n : shape.size) size *= n;
    return size == 0;
}

template <class T, bool masked, bool in_shared>
__global__ void __launch_bounds__(kThreads, kBlocks)
    lncc_statistics(const Plan p, const Windows w, const Images<T> images, const Outputs<T> out) {
    NR_DYNAMIC_SHARED(shared);
    const Tile tile(p);
    const int64_t at = tile.channel * w.in_size;
    const uint8_t* mask = masked ? images.mask + tile.channel / w.mask_step * w.in_size : nullptr;
    const ReadImages<T, masked> source{images.fixed + at, images.warped + at, mask, w.boxes.y.in,
                                       w.boxes.x.in};
    Evaluate<T, masked> evaluate{w, out, mask, tile.channel};
    march(p, tile, in_shared ? shared : p.scratch + blockIdx.x * p.bytes, source, evaluate);
    if (out.partial == nullptr) return;
    const double sum = block_sum(evaluate.total.sum), count = block_sum(evaluate.total.count);
    if (threadIdx.x == 0) out.partial[blockIdx.x] = {sum, count};
}

// One block: the totals of all blocks in order, then the mean.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    lncc_total(const Total* partial, int64_t blocks, T* mean, double* counted) {
    double sum = 0, count = 0;
    for (int64_t i = threadIdx.x; i < blocks; i += kThreads) {
        sum += partial[i].sum;
        count += partial[i].count;
    }
    sum = block_sum(sum);
    count = block_sum(count);
    if (threadIdx.x != 0) return;
    if (mean) *mean = static_cast<T>(sum / (count < 1 ? 1.0 : count));
    *counted = count;
}

template <class T, int F, bool in_shared>
__global__ void __launch_bounds__(kThreads, kBlocks)
    lncc_gradient(const Plan p, const Windows w, const Images<T> images, const Adjoints<T, F> adjoints,
                  const Gradients<T> to) {
    NR_DYNAMIC_SHARED(shared);
    const Tile tile(p);
    const auto source = adjoints.of(tile.channel, w.boxes.z.out, w.boxes.y.out, w.boxes.x.out);
    const int64_t at = tile.channel * w.in_size;
    const uint8_t* mask = images.mask ? images.mask + tile.channel / w.mask_step * w.in_size : nullptr;
    double scale = 1;
    if (to.of_mean) scale = static_cast<double>(*to.of_mean) / (*to.count < 1 ? 1.0 : *to.count);
    Combine<T, F> combine{w, to, images.fixed + at, images.warped + at, mask, at, scale};
    march(p, tile, in_shared ? shared : p.scratch + blockIdx.x * p.bytes, source, combine);
}

Plan forward_plan(const Windows& w, bool masked, int z_begin, int z_end, int device) {
    return plan(w.boxes, masked ? 6 : 5, w.channels, z_begin, z_end, shared_memory_limit(device));
}

Plan backward_plan(const Windows& w, int fields, int z_begin, int z_end, int device) {
    return plan(w.back(), fields, w.channels, z_begin, z_end, shared_memory_limit(device));
}

template <class T>
void run_statistics(const Plan& p, const Windows& w, const Images<T>& images, const Outputs<T>& out,
                    cudaStream_t stream) {
    const auto kernel = images.mask
                            ? p.in_shared ? lncc_statistics<T, true, true> : lncc_statistics<T, true, false>
                        : p.in_shared ? lncc_statistics<T, false, true>
                                      : lncc_statistics<T, false, false>;
    launch(kernel, p.blocks, kThreads, p.shared(), stream, p, w, images, out);
}

template <class T, int F>
void run_gradient(const Plan& p, const Windows& w, const Images<T>& images, const T* const* maps, int ring,
                  const T* upstream, const Gradients<T>& to, cudaStream_t stream) {
    Adjoints<T, F> adjoints{{}, upstream, ring};
    for (int k = 0; k < F; ++k) adjoints.maps[k] = maps[k];
    const auto kernel = p.in_shared ? lncc_gradient<T, F, true> : lncc_gradient<T, F, false>;
    launch(kernel, p.blocks, kThreads, p.shared(), stream, p, w, images, adjoints, to);
}

template <class T, int F>
void backward(const LnccShape& shape, const Images<T>& images, const std::vector<const T*>& saved,
              const T* upstream, const Gradients<T>& to, void* scratch, Where where) {
    const Windows w(shape);
    const auto stream = static_cast<cudaStream_t>(where.stream);
    auto* room = static_cast<unsigned char*>(scratch);
    if (!saved.empty()) {
        Plan p = backward_plan(w, F, 0, w.boxes.z.in, where.device);
        p.scratch = room;
        run_gradient<T, F>(p, w, images, saved.data(), w.boxes.z.out, upstream, to, stream);
        return;
    }
    // The adjoint maps of the windows that a slab of gradient needs and that are not there yet go into a ring
    // of planes, then the slab's gradient is streamed from the ring.
    const int ring = ring_planes(w.boxes.z);
    const int64_t size = w.channels * ring * (int64_t{1} * w.boxes.y.out * w.boxes.x.out);
    Outputs<T> out{nullptr, {}, F, ring, nullptr};
    const T* maps[F];
    for (int k = 0; k < F; ++k) maps[k] = out.adjoints[k] = reinterpret_cast<T*>(room) + k * size;
    room += aligned(F * size * sizeof(T));
    for_slabs(w.boxes.z, [&](int done, int needed, int z0, int z1) {
        Plan forward = forward_plan(w, images.mask != nullptr, done, needed, where.device);
        forward.scratch = room;
        run_statistics(forward, w, images, out, stream);
        Plan back = backward_plan(w, F, z0, z1, where.device);
        back.scratch = room;
        run_gradient<T, F>(back, w, images, maps, ring, upstream, to, stream);
    });
}

}  // namespace

size_t lncc_forward_scratch(const LnccShape& shape, int device) {
    if (empty(shape)) return 0;
    const Windows w(shape);
    const Plan p = forward_plan(w, shape.mask_channels > 0, 0, w.boxes.z.out, device);
    return aligned(static_cast<size_t>(p.blocks) * sizeof(Total)) + p.scratch_bytes();
}

size_t lncc_backward_scratch(const LnccShape& shape, int fields, bool recompute, size_t item, int device) {
    if (empty(shape)) return 0;
    const Windows w(shape);
    if (!recompute) return backward_plan(w, fields, 0, w.boxes.z.in, device).scratch_bytes();
    size_t sums = 0;
    for_slabs(w.boxes.z, [&](int done, int needed, int z0, int z1) {
        const Plan forward = forward_plan(w, shape.mask_channels > 0, done, needed, device);
        sums = std::max(
            {sums, forward.scratch_bytes(), backward_plan(w, fields, z0, z1, device).scratch_bytes()});
    });
    const int64_t plane = int64_t{1} * w.boxes.y.out * w.boxes.x.out;
    return aligned(static_cast<size_t>(fields * w.channels * ring_planes(w.boxes.z) * plane) * item) + sums;
}

template <class T>
void lncc_forward(const LnccShape& shape, const T* fixed, const T* warped, const uint8_t* mask, T* values,
                  T* mean, double* count, const std::vector<T*>& adjoints, void* scratch, Where where) {
    const DeviceGuard guard(where.device);
    const auto stream = static_cast<cudaStream_t>(where.stream);
    auto* partial = static_cast<Total*>(scratch);
    int64_t blocks = 0;
    if (!empty(shape)) {
        const Windows w(shape);
        Plan p = forward_plan(w, mask != nullptr, 0, w.boxes.z.out, where.device);
        blocks = p.blocks;
        p.scratch =
            static_cast<unsigned char*>(scratch) + aligned(static_cast<size_t>(p.blocks) * sizeof(Total));
        Outputs<T> out{values, {}, static_cast<int>(adjoints.size()), w.boxes.z.out, partial};
        std::copy(adjoints.begin(), adjoints.end(), out.adjoints);
        run_statistics(p, w, Images<T>{fixed, warped, mask}, out, stream);
    }
    launch(lncc_total<T>, 1, kThreads, 0, stream, partial, blocks, mean, count);
}

template <class T>
void lncc_backward(const LnccShape& shape, const T* upstream, bool of_mean, const double* count,
                   const T* fixed, const T* warped, const uint8_t* mask,
                   const std::vector<const T*>& adjoints, T* grad_fixed, T* grad_warped, void* scratch,
                   Where where) {
    if (empty(shape)) return;
    const DeviceGuard guard(where.device);
    const auto run = grad_fixed ? backward<T, 5> : backward<T, 3>;
    run(shape, {fixed, warped, mask}, adjoints, of_mean ? nullptr : upstream,
        {grad_fixed, grad_warped, of_mean ? upstream : nullptr, count}, scratch, where);
}

#define NR_INSTANTIATE(T)                                                                                \
    template void lncc_forward<T>(const LnccShape&, const T*, const T*, const uint8_t*, T*, T*, double*, \
                                  const std::vector<T*>&, void*, Where);                                 \
    template void lncc_backward<T>(const LnccShape&, const T*, bool, const double*, const T*, const T*,  \
                                   const uint8_t*, const std::vector<const T*>&, T*, T*, void*, Where);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace gpu
}  // namespace nr
