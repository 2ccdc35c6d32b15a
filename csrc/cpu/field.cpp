// Encoding + MLP in one pass over blocks of points. The backward recomputes the forward of its block, so that
// no activation outlives a block; table gradients go through a bounded buffer from which each level is
// scattered by one thread.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu/fourier.h"
#include "cpu/grid.h"
#include "cpu/layers.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace nr {

namespace {

static_assert(kFieldBlock == kGridBlock, "a block of points is encoded at once");

// Points whose encoding gradient is buffered before it is scattered into the table.
constexpr int64_t kScatterPoints = 96 * 512;

template <class T>
struct FieldParams {
    const T* encoding = nullptr;  // table or B
    const T* const* layers;
    FieldParams(const FieldShape& shape, const std::vector<const T*>& params) {
        const bool has = shape.encoding != Encoding::kIdentity;
        encoding = has ? params[0] : nullptr;
        layers = params.data() + (has ? 1 : 0);
    }
};

template <class T, int N, int F>
class FieldRun {
public:
    FieldRun(const FieldShape& shape, const std::vector<const T*>& params)
        : shape_(shape), params_(shape, params), packed_(shape.widths, params_.layers) {
        if (shape.encoding == Encoding::kGrid) levels_ = grid_levels(shape.grid);
    }

    void forward(int64_t n, const T* x, T* y, int threads) const {
        const int out = shape_.widths.back();
        parallel_for(n, threads, 4 * kFieldBlock, [&](int64_t begin, int64_t end, int) {
            LayerBlock<T> block(shape_, packed_, false);
            for (int64_t start = begin; start < end; start += kFieldBlock) {
                const int count = static_cast<int>(std::min<int64_t>(kFieldBlock, end - start));
                encode(x + start * N, count, block);
                block.forward(count);
                for (int p = 0; p < count; ++p)
                    for (int o = 0; o < out; ++o)
                        y[(start + p) * out + o] = block.output()[p * block.output_stride() + o];
            }
        });
    }

    void backward(int64_t n, const T* x, const T* grad_y, T* grad_x, const std::vector<T*>& grads,
                  int threads) const {
        const bool has = shape_.encoding != Encoding::kIdentity;
        T* grad_encoding = has ? grads[0] : nullptr;
        T* const* grad_layers = grads.data() + (has ? 1 : 0);
        bool want_layers = false;
        for (size_t i = has ? 1 : 0; i < grads.size(); ++i) want_layers |= grads[i] != nullptr;
        const bool want_input = grad_x || grad_encoding;
        const bool scatter = shape_.encoding == Encoding::kGrid && grad_encoding;
        const int width = shape_.widths.front();

        std::vector<std::unique_ptr<LayerBlock<T>>> blocks(std::max(threads, 1));
        const int64_t b_size = scatter || !grad_encoding ? 0 : static_cast<int64_t>(N) * shape_.frequencies;
        std::vector<T> grad_b(b_size * blocks.size(), T(0));
        std::vector<T> buffered(scatter ? std::min(n, kScatterPoints) * width : 0);

        for (int64_t first = 0; first < n; first += kScatterPoints) {
            const int64_t points = std::min(kScatterPoints, n - first);
            parallel_for(points, threads, 4 * kFieldBlock, [&](int64_t begin, int64_t end, int part) {
                if (!blocks[part]) blocks[part] = std::make_unique<LayerBlock<T>>(shape_, packed_, true);
                LayerBlock<T>& block = *blocks[part];
                for (int64_t start = begin; start < end; start += kFieldBlock) {
                    const int count = static_cast<int>(std::min<int64_t>(kFieldBlock, end - start));
                    const T* xs = x + (first + start) * N;
                    encode(xs, count, block);
                    block.forward(count);
                    load_gradient(grad_y + (first + start) * shape_.widths.back(), count, block);
                    block.backward(count, want_layers, want_input);
                    if (want_input)
                        encoding_backward(xs, count, block, grad_x ? grad_x + (first + start) * N : nullptr,
                                          b_size ? grad_b.data() + part * b_size : nullptr);
                    if (scatter) buffer_gradient(block, count, points, start, buffered.data());
                }
            });
            if (scatter)
                parallel_for(
                    static_cast<int64_t>(levels_.size()), threads, 1, [&](int64_t begin, int64_t end, int) {
                        const int features = shape_.grid.features;
                        for (int64_t l = begin; l < end; ++l)
                            grid_scatter_level<T, N, F>(shape_.grid, levels_[l], x + first * N, points,
                                                        buffered.data() + l * points * features, features,
                                                        grad_encoding);
                    });
        }
        for (size_t i = 0; i < grad_b.size(); ++i) grad_encoding[i % b_size] += grad_b[i];
        if (want_layers)
            for (const auto& block : blocks)
                if (block) block->collect(grad_layers);
    }

private:
    void encode(const T* x, int count, LayerBlock<T>& block) const {
        T* encoded = block.input();
        const int64_t stride = block.input_stride();
        switch (shape_.encoding) {
            case Encoding::kGrid:
                grid_gather<T, N, F>(shape_.grid, levels_, x, count, params_.encoding, encoded, stride);
                break;
            case Encoding::kFourier:
                fourier_block(N, shape_.frequencies, static_cast<T>(shape_.fourier_scale), count, x,
                              params_.encoding, encoded, stride);
                break;
            case Encoding::kIdentity:
                for (int p = 0; p < count; ++p)
                    for (int d = 0; d < N; ++d) encoded[p * stride + d] = x[p * N + d];
                break;
        }
    }

    void load_gradient(const T* grad_y, int count, LayerBlock<T>& block) const {
        const int out = shape_.widths.back();
        T* g = block.output_gradient();
        for (int p = 0; p < count; ++p)
            for (int o = 0; o < out; ++o) g[p * block.output_stride() + o] = grad_y[p * out + o];
    }

    void encoding_backward(const T* x, int count, LayerBlock<T>& block, T* grad_x, T* grad_b) const {
        const T* g = block.input_gradient();
        const int64_t stride = block.input_stride();
        switch (shape_.encoding) {
            case Encoding::kGrid:
                if (grad_x)
                    grid_gradient_x<T, N, F>(shape_.grid, levels_, x, count, params_.encoding, g, stride,
                                             grad_x);
                break;
            case Encoding::kFourier:
                fourier_block_backward(N, shape_.frequencies, static_cast<T>(shape_.fourier_scale), count, x,
                                       params_.encoding, block.input(), stride, g, stride, grad_x, grad_b);
                break;
            case Encoding::kIdentity:
                for (int p = 0; p < count; ++p)
                    for (int d = 0; d < N; ++d) grad_x[p * N + d] = g[p * stride + d];
                break;
        }
    }

    // [level][point][feature]: what the owner of a level reads is contiguous
    void buffer_gradient(const LayerBlock<T>& block, int count, int64_t points, int64_t start,
                         T* buffered) const {
        const int features = F ? F : shape_.grid.features;
        for (size_t l = 0; l < levels_.size(); ++l)
            for (int p = 0; p < count; ++p)
                for (int f = 0; f < features; ++f)
                    buffered[(l * points + start + p) * features + f] =
                        block.input_gradient()[p * block.input_stride() + l * features + f];
    }

    const FieldShape& shape_;
    FieldParams<T> params_;
    PackedLayers<T> packed_;
    std::vector<GridLevel> levels_;
};

// Runs body with a FieldRun for the shape's dimension and features.
template <class T, class Body>
void with_field(const FieldShape& shape, const std::vector<const T*>& params, Body&& body) {
    with_features(shape.encoding == Encoding::kGrid ? shape.grid.features : 1, [&](auto f) {
        if (shape.ndim == 3)
            body(FieldRun<T, 3, decltype(f)::value>(shape, params));
        else
            body(FieldRun<T, 2, decltype(f)::value>(shape, params));
    });
}

}  // namespace

template <class T>
void field_forward(const FieldShape& shape, int64_t n, const T* x, const std::vector<const T*>& params, T* y,
                   int threads) {
    with_field<T>(shape, params, [&](const auto& run) { run.forward(n, x, y, threads); });
}

template <class T>
void field_backward(const FieldShape& shape, int64_t n, const T* x, const std::vector<const T*>& params,
                    const T* grad_y, T* grad_x, const std::vector<T*>& grad_params, int threads) {
    with_field<T>(shape, params,
                  [&](const auto& run) { run.backward(n, x, grad_y, grad_x, grad_params, threads); });
}

#define NR_INSTANTIATE(T)                                                                                  \
    template void field_forward<T>(const FieldShape&, int64_t, const T*, const std::vector<const T*>&, T*, \
                                   int);                                                                   \
    template void field_backward<T>(const FieldShape&, int64_t, const T*, const std::vector<const T*>&,    \
                                    const T*, T*, const std::vector<T*>&, int);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace nr
