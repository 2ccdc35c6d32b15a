// Runs every path of the box mean, LNCC and SSIM kernels on buffers of exactly the documented size:
// AddressSanitizer ends the program at the first access beside one.
#include <cmath>
#include <cstdio>
#include <vector>

#include "cuda/box_mean.h"
#include "cuda/ops.h"
#include "fibers.h"
#include "math/lncc.h"

namespace {

template <class T>
void run(const nr::gpu::LnccShape& shape, int maps, bool recompute, bool of_mean) {
    size_t in = shape.batch * shape.channels, out = in, inside = shape.batch * shape.mask_channels;
    for (size_t k = 0; k < shape.size.size(); ++k) {
        in *= shape.size[k];
        inside *= shape.size[k];
        out *= shape.valid ? shape.size[k] - shape.window[k] + 1 : shape.size[k];
    }
    std::vector<T> fixed(in), warped(in), grad_fixed(in), grad_warped(in), values(out), mean(1), ones(out, 1);
    std::vector<uint8_t> mask(inside);
    for (size_t i = 0; i < in; ++i) {
        fixed[i] = static_cast<T>(std::sin(0.7 * static_cast<double>(i)));
        warped[i] = static_cast<T>(std::cos(0.3 * static_cast<double>(i)));
    }
    for (size_t i = 0; i < inside; ++i) mask[i] = i % 5 != 0;
    std::vector<double> count(1);
    std::vector<std::vector<T>> saved(recompute ? 0 : maps, std::vector<T>(out));
    std::vector<T*> to;
    for (auto& map : saved) to.push_back(map.data());
    std::vector<uint8_t> scratch(nr::gpu::lncc_forward_scratch(shape, 0));
    const uint8_t* where_inside = inside ? mask.data() : nullptr;
    nr::gpu::lncc_forward<T>(shape, fixed.data(), warped.data(), where_inside,
                             of_mean ? nullptr : values.data(), of_mean ? mean.data() : nullptr, count.data(),
                             to, scratch.data(), {});
    std::vector<uint8_t> more(nr::gpu::lncc_backward_scratch(shape, maps, recompute, sizeof(T), 0));
    nr::gpu::lncc_backward<T>(shape, ones.data(), of_mean, count.data(), fixed.data(), warped.data(),
                              where_inside, {to.begin(), to.end()}, maps == 5 ? grad_fixed.data() : nullptr,
                              grad_warped.data(), more.data(), {});
    for (T g : grad_warped)
        if (!std::isfinite(g)) std::printf("a gradient is not finite\n");
}

nr::gpu::LnccShape shape_of(std::vector<int64_t> size, std::vector<int64_t> window, bool valid, int mask) {
    nr::gpu::LnccShape shape;
    shape.batch = 1;
    shape.channels = 2;
    shape.size = std::move(size);
    shape.window = std::move(window);
    shape.valid = valid;
    shape.mask_channels = mask;
    shape.eps_mode = nr::EpsMode::kProduct;
    shape.eps = 1e-5;
    shape.flat_tol = 1e-6;
    return shape;
}

// The windows' weights need not be Gaussian.
void run_ssim(const nr::gpu::LnccShape& like, int maps, bool recompute) {
    nr::gpu::SsimShape shape;
    shape.batch = like.batch;
    shape.channels = like.channels;
    shape.size = like.size;
    shape.window = like.window;
    shape.valid = like.valid;
    shape.c1 = shape.c2 = 1e-3;
    size_t in = shape.batch * shape.channels, out = in;
    for (size_t k = 0; k < shape.size.size(); ++k) {
        in *= shape.size[k];
        out *= shape.valid ? shape.size[k] - shape.window[k] + 1 : shape.size[k];
        shape.weights.insert(shape.weights.end(), shape.window[k],
                             1.0 / static_cast<double>(shape.window[k]));
    }
    std::vector<float> fixed(in, 0.5f), warped(in, 0.25f), grad_fixed(in), grad_warped(in), mean(1), one(1);
    std::vector<std::vector<float>> saved(recompute ? 0 : maps, std::vector<float>(out));
    std::vector<float*> to;
    for (auto& map : saved) to.push_back(map.data());
    std::vector<uint8_t> scratch(nr::gpu::ssim_forward_scratch(shape, 0));
    nr::gpu::ssim_forward<float>(shape, fixed.data(), warped.data(), nullptr, mean.data(), to, scratch.data(),
                                 {});
    std::vector<uint8_t> more(nr::gpu::ssim_backward_scratch(shape, maps, recompute, sizeof(float), 0));
    nr::gpu::ssim_backward<float>(shape, one.data(), true, fixed.data(), warped.data(),
                                  {to.begin(), to.end()}, maps == 4 ? grad_fixed.data() : nullptr,
                                  grad_warped.data(), more.data(), {});
}

void run_means(const nr::gpu::LnccShape& like, bool adjoint) {
    const nr::gpu::BoxShape shape{like.batch * like.channels, like.size, like.window, adjoint};
    size_t voxels = shape.channels;
    for (int64_t n : shape.size) voxels *= n;
    std::vector<float> image(voxels, 0.5f), out(voxels);
    std::vector<uint8_t> scratch(nr::gpu::box_mean_scratch(shape, 0));
    nr::gpu::box_mean<float>(shape, image.data(), out.data(), scratch.data(), {});
    for (float mean : out)
        if (!std::isfinite(mean)) std::printf("a mean is not finite\n");
}

}  // namespace

int main() {
    for (size_t shared : {size_t{99} * 1024, size_t{16} * 1024}) {
        cuda_on_cpu::shared_memory_size() = shared;  // the small one sends the sums to scratch
        for (const auto& shape :
             {shape_of({4, 18, 34}, {3, 4, 9}, false, 0), shape_of({5, 1, 33}, {7, 9, 2}, false, 1),
              shape_of({4, 22, 36}, {2, 5, 4}, true, 2), shape_of({17, 33}, {5, 3}, true, 0)}) {
            run<float>(shape, 3, false, true);
            run<double>(shape, 5, true, false);
            run_means(shape, false);
            run_means(shape, true);
            run_ssim(shape, 3, true);
            run_ssim(shape, 4, false);
        }
    }
    // More planes than a slab of the recomputing pass.
    cuda_on_cpu::shared_memory_size() = 99 * 1024;
    run<float>(shape_of({40, 3, 4}, {9, 3, 3}, false, 0), 3, true, true);
    std::printf("all within bounds\n");
    return 0;
}
