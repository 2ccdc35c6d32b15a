// Runs every path of the sampling kernels on buffers of exactly the documented size: AddressSanitizer ends
// the program at the first access beside one.
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "cuda/sampling.h"
#include "fibers.h"
#include "math/trilinear.h"

namespace {

using nr::gpu::SampleShape;

template <class T>
std::vector<T> numbers(size_t count, double size) {
    std::vector<T> result(count);
    for (size_t i = 0; i < count; ++i)
        result[i] = static_cast<T>(size * std::sin(0.7 * static_cast<double>(i) + 0.2));
    return result;
}

size_t product(const std::vector<int64_t>& sizes) {
    size_t result = 1;
    for (int64_t n : sizes) result *= static_cast<size_t>(n);
    return result;
}

template <class T>
struct Buffers {
    std::vector<T> image, coordinates, affine, out, gradient;

    explicit Buffers(const SampleShape& shape)
        : image(numbers<T>(shape.batch * shape.channels * product(shape.in), 1)),
          coordinates(numbers<T>(shape.batch * shape.in.size() * product(shape.out), 3)),
          affine(numbers<T>(shape.normalized ? 0 : shape.batch * shape.in.size() * (shape.in.size() + 1), 1)),
          out(numbers<T>(shape.batch * shape.channels * product(shape.out), 1)),
          gradient(numbers<T>(out.size() * shape.in.size(), 1)) {
        coordinates.front() = std::numeric_limits<T>::quiet_NaN();  // the wildest places to read at
        coordinates.back() = std::numeric_limits<T>::infinity();
        coordinates[coordinates.size() / 2] = static_cast<T>(-3e9);
    }
    const T* matrix() const { return affine.empty() ? nullptr : affine.data(); }
};

template <class T>
void run(SampleShape shape, bool deterministic) {
    const Buffers<T> in(shape);
    Buffers<T> to(shape), once(shape);
    std::vector<uint16_t> half(in.image.size(), 0x3f80);
    std::vector<int64_t> sums(in.image.size());
    uint64_t largest = 0;
    std::vector<uint8_t> scratch(shape.normalized ? 0 : nr::gpu::sample_scratch(shape));
    const nr::gpu::FixedPoint fixed_point = {deterministic ? sums.data() : nullptr, &largest};
    T* const grad_affine = shape.normalized ? nullptr : to.affine.data();
    const nr::gpu::SampleGradients<T> all = {to.image.data(), to.coordinates.data(), grad_affine, fixed_point,
                                             scratch.data()};
    const nr::gpu::SampleGradients<T> some = {to.image.data(), to.coordinates.data(), nullptr, fixed_point,
                                              nullptr};
    const T *x = in.coordinates.data(), *matrix = in.matrix(), *image = in.image.data();
    nr::gpu::sample_forward<T>(shape, image, x, matrix, to.out.data(), to.gradient.data(), {});
    for (const auto& gradients : {all, some}) {
        nr::gpu::sample_backward<T>(shape, in.out.data(), nullptr, image, x, matrix, gradients, {});
        if (!shape.normalized)
            nr::gpu::sample_backward<T>(shape, in.out.data(), in.gradient.data(), image, x, matrix, gradients,
                                        {});
        nr::gpu::sample_twice<T>(shape, {once.image.data(), once.coordinates.data(), once.matrix()},
                                 in.out.data(), image, x, matrix, to.out.data(), gradients, {});
    }
    nr::gpu::sample_labels<T, T>(shape, image, x, matrix, to.out.data(), {});
    shape.storage = sizeof(T) == 4 ? nr::gpu::Storage::kBfloat16 : nr::gpu::Storage::kSame;
    const void* stored = sizeof(T) == 4 ? static_cast<const void*>(half.data()) : image;
    nr::gpu::sample_forward<T>(shape, stored, x, matrix, to.out.data(), nullptr, {});
    shape.nearest = true;
    nr::gpu::sample_forward<T>(shape, stored, x, matrix, to.out.data(), nullptr, {});
    nr::gpu::sample_backward<T>(shape, in.out.data(), nullptr, stored, x, matrix,
                                {to.image.data(), nullptr, nullptr, fixed_point, nullptr}, {});
    nr::gpu::sample_labels<T, T>(shape, image, x, matrix, to.out.data(), {});
}

}  // namespace

int main() {
    SampleShape shape;
    shape.batch = 2;
    shape.channels = 2;
    shape.in = {4, 5, 3};
    shape.out = {7, 13, 12};  // more than a block's share, and not a multiple of it
    run<float>(shape, true);
    shape.batch = 1;
    bool deterministic = false;
    for (const auto padding : {nr::Padding::kZeros, nr::Padding::kBorder, nr::Padding::kReflection})
        for (const bool grid : {false, true}) {
            shape.padding = padding;
            shape.normalized = grid;
            shape.align_corners = !grid;
            shape.in = {4, 1, 3};
            shape.out = {3, 5, 4};
            run<double>(shape, deterministic);
            shape.in = {1, 6};
            shape.out = {7, 9};
            deterministic = !deterministic;
            run<float>(shape, deterministic);
        }
    std::printf("all within bounds\n");
    return 0;
}
