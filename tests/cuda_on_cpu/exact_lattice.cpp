// Runs every path of the kernels on dense fields on buffers of exactly the documented size: AddressSanitizer
// ends the program at the first access beside one.
#include <cmath>
#include <cstdio>
#include <vector>

#include "cuda/lattice.h"
#include "cuda/refine.h"
#include "fibers.h"

namespace {

template <class T>
std::vector<T> numbers(int64_t count) {
    std::vector<T> result(static_cast<size_t>(count));
    for (size_t i = 0; i < result.size(); ++i)
        result[i] = static_cast<T>(0.8 * std::sin(0.7 * static_cast<double>(i) + 0.2));
    return result;
}

template <class T>
void finite(const std::vector<T>& values) {
    for (T value : values)
        if (!std::isfinite(value)) std::printf("a value is not finite\n");
}

int64_t product(const std::vector<int64_t>& size) {
    int64_t result = 1;
    for (int64_t n : size) result *= n;
    return result;
}

template <class T>
void differences(const std::vector<int64_t>& size) {
    const int64_t axes = static_cast<int64_t>(size.size()), batch = 1, voxels = product(size);
    const auto u = numbers<T>(batch * axes * voxels), upstream = numbers<T>(batch * voxels);
    std::vector<T> det(batch * voxels), grad(u.size()), value(1), one{1};
    std::vector<int64_t> folds(1);
    for (const auto scheme :
         {nr::gpu::Scheme::kForward, nr::gpu::Scheme::kBackward, nr::gpu::Scheme::kCentral}) {
        const nr::gpu::LatticeShape shape{batch, axes, size, std::vector<double>(axes, 1.5), scheme};
        std::vector<unsigned char> scratch(nr::gpu::lattice_scratch(shape));
        nr::gpu::jacobian_determinant_forward<T>(shape, u.data(), det.data(), {});
        finite(det);
        nr::gpu::jacobian_determinant_backward<T>(shape, upstream.data(), u.data(), grad.data(), {});
        finite(grad);
        const auto penalty = scheme == nr::gpu::Scheme::kForward ? nr::Penalty::kRelu : nr::Penalty::kUnit;
        nr::gpu::jacobian_loss_forward<T>(shape, penalty, 0.5, u.data(), value.data(), folds.data(),
                                          scratch.data(), {});
        nr::gpu::jacobian_loss_backward<T>(shape, penalty, 0.5, one.data(), u.data(), grad.data(), {});
        finite(grad);
        if (scheme != nr::gpu::Scheme::kForward) continue;
        nr::gpu::diffusion_loss_forward<T>(shape, u.data(), value.data(), scratch.data(), {});
        nr::gpu::diffusion_loss_backward<T>(shape, one.data(), u.data(), grad.data(), {});
        finite(grad);
        nr::gpu::bending_loss_forward<T>(shape, u.data(), value.data(), scratch.data(), {});
        nr::gpu::bending_loss_backward<T>(shape, one.data(), u.data(), grad.data(), {});
        finite(grad);
        finite(value);
    }
}

template <class T>
void matrices(int ndim, int64_t n) {
    const auto j = numbers<T>(n * ndim * ndim);
    std::vector<T> grad(j.size()), value(1), one{1};
    std::vector<int64_t> folds(1);
    std::vector<unsigned char> scratch(nr::gpu::jacobian_penalty_scratch(n));
    nr::gpu::jacobian_penalty_forward<T>(ndim, n, nr::Penalty::kUnit, 0, j.data(), value.data(), folds.data(),
                                         scratch.data(), {});
    nr::gpu::jacobian_penalty_backward<T>(ndim, n, nr::Penalty::kUnit, 0, one.data(), j.data(), grad.data(),
                                          {});
    finite(grad);
}

template <class T>
void refinement(const std::vector<int64_t>& size, bool amsgrad) {
    nr::gpu::RefineShape shape;
    shape.batch = shape.channels = 2;
    shape.size = shape.in = size;
    for (int64_t& n : shape.in) n += 3;
    shape.window.assign(size.size(), 3);
    shape.regularisation = 0.5;
    shape.lr = 0.1;
    shape.beta1 = 0.9;
    shape.beta2 = 0.99;
    shape.eps = 1e-8;
    const int64_t field = shape.batch * static_cast<int64_t>(size.size()) * product(size);
    const auto fixed = numbers<T>(4 * product(size)), moving = numbers<T>(4 * product(shape.in));
    auto u = numbers<T>(field);
    for (T& value : u) value *= 4;
    std::vector<T> mean(field), square(field), largest(amsgrad ? field : 0), work(4 * product(size));
    std::vector<double> energy(shape.batch);
    std::vector<int64_t> step(1);
    std::vector<unsigned char> scratch(nr::gpu::refine_scratch(shape, sizeof(T), 0));
    nr::gpu::refine_step<T>(shape, fixed.data(), moving.data(), u.data(), mean.data(), square.data(),
                            amsgrad ? largest.data() : nullptr, step.data(), work.data(), energy.data(),
                            scratch.data(), {});
    finite(u);
    finite(energy);
    if (step[0] != 1) std::printf("the step is not counted\n");
}

}  // namespace

int main() {
    const std::vector<std::vector<int64_t>> sizes{{17, 9, 33}, {2, 1, 5}, {3, 9, 1},
                                                  {1, 1, 1},   {9, 34},   {1, 5}};
    for (const auto& size : sizes) {
        differences<float>(size);
        refinement<float>(size, true);
        if (product(size) < 100) {
            differences<double>(size);
            refinement<double>(size, false);
        }
    }
    for (int64_t n : {0, 1, 1025}) {
        matrices<float>(2, n);
        matrices<double>(3, n);
    }
    auto table = numbers<float>(300 * 3), grad = numbers<float>(300 * 3), mean = grad, square = grad;
    for (float& value : square) value *= value;
    std::vector<int32_t> steps(300);
    nr::gpu::table_adam<float>(300, 3, 0.1, 0.9, 0.99, 1e-15, table.data(), grad.data(), mean.data(),
                               square.data(), steps.data(), {});
    finite(table);
    std::printf("all within bounds\n");
    return 0;
}
