// Structural similarity: weighted moments of f, w, ff, ww, fw tile by tile; the backward pass weighs the
// derivatives with respect to those moments with the windows turned around. Blocks write partial sums that a
// second kernel adds in order: no atomics.
#include <algorithm>

#include "cuda/adjoints.h"
#include "cuda/ops.h"
#include "cuda/reduce.h"
#include "cuda/taps.h"
#include "math/ssim.h"

namespace nr {
namespace gpu {

namespace {

// Geometry and weights of the windows. Taps that no voxel ever meets are cut off.
struct Windows {
    Boxes boxes;
    Taps taps, turned;
    double c1, c2;
    int64_t in_size, out_size;  // elements of one channel of the images and of the map
    int64_t channels;

    explicit Windows(const SsimShape& s) : taps{}, turned{}, c1(s.c1), c2(s.c2) {
        const size_t axes = s.size.size();
        BoxAxis* of[3] = {&boxes.z, &boxes.y, &boxes.x};
        int starts[4] = {0, 0, 0, 0};
        size_t at = 0;  // in the weights that came in
        for (size_t k = 0; k < 3; ++k) {
            if (k + axes < 3) {  // 2-D is one plane of 3-D
                taps.weights[0] = 1;
                starts[k + 1] = 1;
                continue;
            }
            const int64_t n = s.size[k + axes - 3], w = s.window[k + axes - 3];
            *of[k] = s.valid ? BoxAxis(n, n - w + 1, 0, w - 1) : BoxAxis(n, n, (w - 1) / 2, w / 2);
            const int64_t cut = s.valid ? 0 : (w - 1) / 2 - of[k]->before;
            const int kept = of[k]->window();
            if (starts[k] + kept > kMaxTaps)
                throw std::runtime_error("ssim: windows of more than " + std::to_string(kMaxTaps) + " taps");
            std::copy_n(s.weights.begin() + static_cast<int64_t>(at) + cut, kept, taps.weights + starts[k]);
            starts[k + 1] = starts[k] + kept;
            at += static_cast<size_t>(w);
        }
        for (int k = 0; k < 3; ++k)
            std::reverse_copy(taps.weights + starts[k], taps.weights + starts[k + 1],
                              turned.weights + starts[k]);
        taps.y = turned.y = starts[1];
        taps.x = turned.x = starts[2];
        in_size = int64_t{1} * boxes.z.in * boxes.y.in * boxes.x.in;
        out_size = int64_t{1} * boxes.z.out * boxes.y.out * boxes.x.out;
        channels = s.batch * s.channels;
    }
    Boxes back() const { return {boxes.z.adjoint(), boxes.y.adjoint(), boxes.x.adjoint()}; }
};

// What kernels need of the windows: only one of their two sets of weights fits into a launch.
struct Layout {
    int64_t in_size, out_size;
    double c1, c2;
};

Layout layout(const Windows& w) { return {w.in_size, w.out_size, w.c1, w.c2}; }

template <class T>
struct ReadPair {
    static constexpr int kFields = 5;
    const T *fixed, *warped;
    int rows, width;

    __device__ void read(int plane, int y, int x, double* v) const {
        const int64_t at = (int64_t{1} * plane * rows + y) * width + x;
        v[0] = static_cast<double>(fixed[at]);
        v[1] = static_cast<double>(warped[at]);
        v[2] = v[0] * v[0];
        v[3] = v[1] * v[1];
        v[4] = v[0] * v[1];
    }
};

template <class T>
struct Outputs {
    T* values;
    T* adjoints[4];  // with respect to w, the squares, the product, f
    int maps;        // 0, 3 or 4 of them
    int ring;        // planes of a channel of the adjoints, reused in turn
    double* partial;
};

template <class T>
struct Evaluate {
    const Plan& p;
    const Layout& layout;
    const Outputs<T>& out;
    int64_t channel;
    double total;

    __device__ void operator()(int plane, int y, int x, const double* s) {
        const SsimMoments<double> moments{s[0], s[1], s[2], s[3], s[4]};
        const SsimValue<double> window = ssim_window(moments, layout.c1, layout.c2);
        total += window.value;
        const BoxAxis &rows = p.boxes.y, &columns = p.boxes.x;
        const int64_t in_plane = int64_t{1} * y * columns.out + x, size = int64_t{1} * rows.out * columns.out;
        if (out.values)
            out.values[channel * layout.out_size + plane * size + in_plane] = static_cast<T>(window.value);
        if (out.maps == 0) return;
        const int64_t at = (channel * out.ring + plane % out.ring) * size + in_plane;
        out.adjoints[0][at] = static_cast<T>(window.to_w);
        out.adjoints[1][at] = static_cast<T>(window.to_square);
        out.adjoints[2][at] = static_cast<T>(window.to_product);
        if (out.maps == 4) out.adjoints[3][at] = static_cast<T>(window.to_f);
    }
};

template <class T, bool in_shared>
__global__ void __launch_bounds__(kThreads, kBlocks)
    ssim_statistics(const Plan p, const Taps taps, const Layout w, const T* fixed, const T* warped,
                    const Outputs<T> out) {
    NR_DYNAMIC_SHARED(shared);
    const Tile tile(p);
    const int64_t at = tile.channel * w.in_size;
    const ReadPair<T> source{fixed + at, warped + at, p.boxes.y.in, p.boxes.x.in};
    Evaluate<T> evaluate{p, w, out, tile.channel, 0};
    march(p, taps, tile, in_shared ? shared : p.scratch + blockIdx.x * p.bytes, source, evaluate);
    if (out.partial == nullptr) return;
    const double sum = block_sum(evaluate.total);
    if (threadIdx.x == 0) out.partial[blockIdx.x] = sum;
}

// One block: the totals of all blocks in order, then the mean.
template <class T>
__global__ void __launch_bounds__(kThreads)
    ssim_mean(const double* partial, int64_t blocks, double windows, T* mean) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < blocks; i += kThreads) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *mean = static_cast<T>(sum / windows);
}

template <class T>
struct Gradients {
    T *fixed, *warped;
    const T* of_mean;  // upstream gradient of the mean, or null
    double windows;    // in that mean
};

template <class T, int F>
struct Combine {
    const Plan& p;
    const Gradients<T>& to;
    const T *fixed, *warped;
    int64_t channel_at;
    double scale;

    __device__ void operator()(int plane, int y, int x, const double* s) {
        const int64_t in_channel = (int64_t{1} * plane * p.boxes.y.out + y) * p.boxes.x.out + x;
        const int64_t at = channel_at + in_channel;
        const double f = static_cast<double>(fixed[at]), w = static_cast<double>(warped[at]);
        to.warped[at] = static_cast<T>(scale * (s[0] + 2 * w * s[1] + f * s[2]));
        if (F == 4) to.fixed[at] = static_cast<T>(scale * (s[F - 1] + 2 * f * s[1] + w * s[2]));
    }
};

template <class T, int F, bool in_shared>
__global__ void __launch_bounds__(kThreads, kBlocks)
    ssim_gradient(const Plan p, const Taps taps, const Layout w, const T* fixed, const T* warped,
                  const Adjoints<T, F> adjoints, const Gradients<T> to) {
    NR_DYNAMIC_SHARED(shared);
    const Tile tile(p);
    const auto source = adjoints.of(tile.channel, p.boxes.z.in, p.boxes.y.in, p.boxes.x.in);
    const double scale = to.of_mean ? static_cast<double>(*to.of_mean) / to.windows : 1.0;
    Combine<T, F> combine{p, to, fixed, warped, tile.channel * w.in_size, scale};
    march(p, taps, tile, in_shared ? shared : p.scratch + blockIdx.x * p.bytes, source, combine);
}

bool empty(const SsimShape& shape) {
    int64_t size = shape.batch * shape.channels;
    for (int64_t n : shape.size) size *= n;
    return size == 0;
}

Plan forward_plan(const Windows& w, int z_begin, int z_end, int device) {
    return plan(w.boxes, 5, w.channels, z_begin, z_end, shared_memory_limit(device));
}

Plan backward_plan(const Windows& w, int fields, int z_begin, int z_end, int device) {
    return plan(w.back(), fields, w.channels, z_begin, z_end, shared_memory_limit(device));
}

template <class T>
void run_statistics(const Plan& p, const Windows& w, const T* fixed, const T* warped, const Outputs<T>& out,
                    cudaStream_t stream) {
    const auto kernel = p.in_shared ? ssim_statistics<T, true> : ssim_statistics<T, false>;
    launch(kernel, p.blocks, kThreads, p.shared(), stream, p, w.taps, layout(w), fixed, warped, out);
}

template <class T, int F>
void run_gradient(const Plan& p, const Windows& w, const T* fixed, const T* warped, const T* const* maps,
                  int ring, const T* upstream, const Gradients<T>& to, cudaStream_t stream) {
    Adjoints<T, F> adjoints{{}, upstream, ring};
    for (int k = 0; k < F; ++k) adjoints.maps[k] = maps[k];
    const auto kernel = p.in_shared ? ssim_gradient<T, F, true> : ssim_gradient<T, F, false>;
    launch(kernel, p.blocks, kThreads, p.shared(), stream, p, w.turned, layout(w), fixed, warped, adjoints,
           to);
}

template <class T, int F>
void backward(const SsimShape& shape, const T* fixed, const T* warped, const std::vector<const T*>& saved,
              const T* upstream, Gradients<T> to, void* scratch, Where where) {
    const Windows w(shape);
    to.windows = static_cast<double>(w.channels * w.out_size);
    const auto stream = static_cast<cudaStream_t>(where.stream);
    auto* room = static_cast<unsigned char*>(scratch);
    if (!saved.empty()) {
        Plan p = backward_plan(w, F, 0, w.boxes.z.in, where.device);
        p.scratch = room;
        run_gradient<T, F>(p, w, fixed, warped, saved.data(), w.boxes.z.out, upstream, to, stream);
        return;
    }
    const int ring = ring_planes(w.boxes.z);
    const int64_t size = w.channels * ring * (int64_t{1} * w.boxes.y.out * w.boxes.x.out);
    Outputs<T> out{nullptr, {}, F, ring, nullptr};
    const T* maps[F];
    for (int k = 0; k < F; ++k) maps[k] = out.adjoints[k] = reinterpret_cast<T*>(room) + k * size;
    room += aligned(static_cast<size_t>(F * size) * sizeof(T));
    for_slabs(w.boxes.z, [&](int done, int needed, int z0, int z1) {
        Plan forward = forward_plan(w, done, needed, where.device);
        forward.scratch = room;
        run_statistics(forward, w, fixed, warped, out, stream);
        Plan back = backward_plan(w, F, z0, z1, where.device);
        back.scratch = room;
        run_gradient<T, F>(back, w, fixed, warped, maps, ring, upstream, to, stream);
    });
}

}  // namespace

size_t ssim_forward_scratch(const SsimShape& shape, int device) {
    if (empty(shape)) return 0;
    const Windows w(shape);
    const Plan p = forward_plan(w, 0, w.boxes.z.out, device);
    return aligned(static_cast<size_t>(p.blocks) * sizeof(double)) + p.scratch_bytes();
}

size_t ssim_backward_scratch(const SsimShape& shape, int fields, bool recompute, size_t item, int device) {
    if (empty(shape)) return 0;
    const Windows w(shape);
    if (!recompute) return backward_plan(w, fields, 0, w.boxes.z.in, device).scratch_bytes();
    size_t sums = 0;
    for_slabs(w.boxes.z, [&](int done, int needed, int z0, int z1) {
        sums = std::max({sums, forward_plan(w, done, needed, device).scratch_bytes(),
                         backward_plan(w, fields, z0, z1, device).scratch_bytes()});
    });
    const int64_t plane = int64_t{1} * w.boxes.y.out * w.boxes.x.out;
    return aligned(static_cast<size_t>(fields * w.channels * ring_planes(w.boxes.z) * plane) * item) + sums;
}

template <class T>
void ssim_forward(const SsimShape& shape, const T* fixed, const T* warped, T* values, T* mean,
                  const std::vector<T*>& adjoints, void* scratch, Where where) {
    const DeviceGuard guard(where.device);
    const auto stream = static_cast<cudaStream_t>(where.stream);
    auto* partial = static_cast<double*>(scratch);
    int64_t blocks = 0;
    double windows = 1;
    if (!empty(shape)) {
        const Windows w(shape);
        Plan p = forward_plan(w, 0, w.boxes.z.out, where.device);
        blocks = p.blocks;
        windows = static_cast<double>(w.channels * w.out_size);
        p.scratch =
            static_cast<unsigned char*>(scratch) + aligned(static_cast<size_t>(blocks) * sizeof(double));
        Outputs<T> out{values, {}, static_cast<int>(adjoints.size()), w.boxes.z.out, partial};
        std::copy(adjoints.begin(), adjoints.end(), out.adjoints);
        run_statistics(p, w, fixed, warped, out, stream);
    }
    if (mean) launch(ssim_mean<T>, 1, kThreads, 0, stream, partial, blocks, windows, mean);
}

template <class T>
void ssim_backward(const SsimShape& shape, const T* upstream, bool of_mean, const T* fixed, const T* warped,
                   const std::vector<const T*>& adjoints, T* grad_fixed, T* grad_warped, void* scratch,
                   Where where) {
    if (empty(shape)) return;
    const DeviceGuard guard(where.device);
    const auto run = grad_fixed ? backward<T, 4> : backward<T, 3>;
    run(shape, fixed, warped, adjoints, of_mean ? nullptr : upstream,
        {grad_fixed, grad_warped, of_mean ? upstream : nullptr, 1}, scratch, where);
}

#define NR_INSTANTIATE(T)                                                                               \
    template void ssim_forward<T>(const SsimShape&, const T*, const T*, T*, T*, const std::vector<T*>&, \
                                  void*, Where);                                                        \
    template void ssim_backward<T>(const SsimShape&, const T*, bool, const T*, const T*,                \
                                   const std::vector<const T*>&, T*, T*, void*, Where);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace gpu
}  // namespace nr
