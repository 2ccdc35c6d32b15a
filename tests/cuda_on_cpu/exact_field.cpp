// Runs every path of the encodings' and the field's kernels on buffers of exactly the documented size:
// AddressSanitizer ends the program at the first access beside one.
#include <cmath>
#include <cstdio>
#include <vector>

#include "cuda/field.h"
#include "fibers.h"
#include "math/activation.h"

namespace {

using nr::gpu::FieldShape;

template <class T>
std::vector<T> numbers(size_t count, double size = 0.5) {
    std::vector<T> result(count);
    for (size_t i = 0; i < count; ++i)
        result[i] = static_cast<T>(size * std::sin(0.7 * static_cast<double>(i) + 0.2));
    return result;
}

template <class T>
struct Buffers {
    std::vector<std::vector<T>> all;
    nr::gpu::FieldTensors<const T> read;
    nr::gpu::FieldTensors<T> write;

    T* add(size_t count) {
        all.push_back(numbers<T>(count));
        write.all.push_back(all.back().data());
        read.all.push_back(all.back().data());
        return all.back().data();
    }
};

template <class T>
Buffers<T> tensors(const FieldShape& shape, int64_t latent_rows) {
    Buffers<T> made;
    made.read.latent_rows = made.write.latent_rows = latent_rows;
    if (shape.encoding == nr::gpu::Encoding::kGrid) made.add(shape.grid.entries * shape.grid.features);
    if (shape.encoding == nr::gpu::Encoding::kFourier) made.add(shape.ndim * shape.frequencies);
    if (shape.latent) made.add(latent_rows * shape.latent);
    if (shape.volume_channels)
        made.add(nr::gpu::volume_grid(shape.volume_size, 1).entries * shape.volume_channels);
    std::vector<int> widths{shape.gated() ? shape.encoded() : shape.inputs()};
    widths.insert(widths.end(), shape.hidden.begin(), shape.hidden.end());
    widths.push_back(shape.out);
    for (size_t l = 0; l + 1 < widths.size(); ++l) {
        made.add(size_t{1} * widths[l] * widths[l + 1]);
        made.add(widths[l + 1]);
    }
    widths[0] = shape.inputs();
    for (size_t l = 0; shape.gated() && l + 2 < widths.size(); ++l) {
        made.add(size_t{1} * widths[l] * widths[l + 1]);
        made.add(widths[l + 1]);
    }
    return made;
}

template <class T>
void run(const FieldShape& shape, int64_t n, int64_t chunk, bool jet, bool latent_a_point) {
    const auto given = tensors<T>(shape, latent_a_point ? n : 1);
    auto grads = tensors<T>(shape, latent_a_point ? n : 1);
    const auto x = numbers<T>(n * shape.ndim, 1.1);
    std::vector<T> y(n * shape.out), jacobian(jet ? y.size() * shape.ndim : 0), grad_x(x.size());
    std::vector<unsigned char> room(nr::gpu::field_forward_scratch(shape, jet, n, sizeof(T), 0));
    nr::gpu::field_forward<T>(shape, n, x.data(), given.read, y.data(), jet ? jacobian.data() : nullptr,
                              room.data(), {});
    for (T value : y)
        if (!std::isfinite(value)) std::printf("a value is not finite\n");
    const int rows = jet ? 1 + shape.ndim : 1;
    const bool grid = shape.encoding == nr::gpu::Encoding::kGrid;
    std::vector<T> features(grid ? shape.encoded() * rows * chunk : 0);
    std::vector<T> channels(shape.volume_channels * rows * chunk);
    std::vector<unsigned char> more(
        nr::gpu::field_backward_scratch(shape, jet, std::min(chunk, n), sizeof(T), 0));
    nr::gpu::FieldGradients<T> to{y.data(), jet ? jacobian.data() : nullptr, grad_x.data(),
                                  grid ? features.data() : nullptr,
                                  shape.volume_channels ? channels.data() : nullptr};
    for (int64_t begin = 0; begin < n; begin += chunk) {
        nr::gpu::field_backward<T>(shape, begin, chunk, n, x.data(), given.read, to, grads.write, more.data(),
                                   {});
        if (!grid) continue;
        const int64_t part = std::min(chunk, n - begin);
        const nr::gpu::Upstream<T> upstream{features.data(), rows, chunk, rows * chunk, 1};
        std::vector<int64_t> sums(shape.grid.entries * shape.grid.features);
        uint64_t largest = 0;
        for (bool fixed : {false, true})
            nr::gpu::grid_scatter<T>(shape.grid, part, x.data() + begin * shape.ndim, upstream,
                                     grads.write.all[0], fixed ? sums.data() : nullptr, &largest, {});
        nr::gpu::grid_gradient_x<T>(shape.grid, part, x.data() + begin * shape.ndim, given.read.all[0],
                                    upstream, grad_x.data() + begin * shape.ndim, true, {});
    }
    for (const auto& grad : grads.all)
        for (T value : grad)
            if (!std::isfinite(value)) std::printf("a gradient is not finite\n");
}

FieldShape shape_of(int ndim, nr::gpu::Encoding encoding, std::vector<int> hidden) {
    FieldShape shape;
    shape.ndim = shape.out = ndim;
    shape.encoding = encoding;
    shape.hidden = std::move(hidden);
    if (encoding == nr::gpu::Encoding::kGrid)
        shape.grid = nr::gpu::feature_grid(ndim, {3, 9, 18}, 2, 1 << 10, true);
    shape.frequencies = encoding == nr::gpu::Encoding::kFourier ? 5 : 0;
    shape.scale = 2;
    shape.activation = static_cast<int>(nr::Activation::kTanh);
    return shape;
}

}  // namespace

int main() {
    using nr::gpu::Encoding;
    FieldShape plain = shape_of(3, Encoding::kNone, {9, 70}), grid = shape_of(3, Encoding::kGrid, {12});
    FieldShape flat = shape_of(2, Encoding::kGrid, {7, 7, 7});
    flat.skip = nr::gpu::Skip::kFirst;
    flat.volume_size = {4, 3};
    flat.volume_channels = 3;
    FieldShape gated = shape_of(3, Encoding::kFourier, {8, 8});
    gated.raw = true;
    gated.latent = 3;
    gated.activation = static_cast<int>(nr::Activation::kSine);
    gated.omega = gated.gate_omega = {2, 1};
    gated.skip = nr::gpu::Skip::kPrevious;
    for (size_t shared : {size_t{99} * 1024, size_t{20} * 1024}) {
        cuda_on_cpu::shared_memory_size() = shared;  // the small one sends tiles to scratch
        for (const FieldShape& shape : {plain, grid, flat, gated})
            for (bool jet : {false, true}) {
                run<float>(shape, 70, 70, jet, false);
                run<double>(shape, 53, 20, jet, true);
            }
    }
    const nr::gpu::FourierShape fourier{2, 7, 3.0};
    const auto x = numbers<float>(2 * 70), matrix = numbers<float>(14);
    std::vector<float> encoded(70 * 14), grad_x(2 * 70), grad_matrix(14);
    std::vector<unsigned char> room(nr::gpu::fourier_encode_scratch(fourier, 70, sizeof(float)));
    nr::gpu::fourier_encode_forward<float>(fourier, 70, x.data(), matrix.data(), encoded.data(), {});
    nr::gpu::fourier_encode_backward<float>(fourier, 70, x.data(), matrix.data(), encoded.data(),
                                            grad_x.data(), grad_matrix.data(), room.data(), {});
    const nr::gpu::Grid wide =
        nr::gpu::feature_grid(2, {4, 80}, 3, 1 << 14, false);  // the second is a fine level
    const auto table = numbers<float>(wide.entries * 3);
    std::vector<float> features(70 * 6), grad_table(table.size());
    nr::gpu::grid_encode<float>(wide, 70, x.data(), table.data(), features.data(), {});
    nr::gpu::grid_scatter<float>(wide, 70, x.data(), {features.data(), 1, 0, 1, 6}, grad_table.data(),
                                 nullptr, nullptr, {});
    nr::gpu::grid_gradient_x<float>(wide, 70, x.data(), table.data(), {features.data(), 1, 0, 1, 6},
                                    grad_x.data(), false, {});
    std::printf("all within bounds\n");
    return 0;
}
