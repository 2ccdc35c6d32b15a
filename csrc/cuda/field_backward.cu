// The field's backward: a block computes a tile's forward again, keeps its layers' values, and goes back
// through them. Gradients of the parameters are summed by every block over its tiles and then over the
// blocks, in order.
#include "cuda/field.h"
#include "cuda/field_tile.h"

namespace nr {
namespace gpu {

namespace {

template <class T>
struct OutputGradients {
    const T* y;
    const T* jacobian;
};

struct BlockSums {
    bool go_on;          // from where the last launch left them; else from 0
    int latent, matrix;  // where those of the latent and the matrix begin; -1: not wanted
};

template <class T, int K>
__device__ __forceinline__ void load_output_gradients(const Network<T>& net, const TilePoints<T>& points,
                                                      const OutputGradients<T>& from, T* tile) {
    T* z = tile + net.layers[net.count - 1].z * kPitch;
    for_each_point<tile_points(K)>(net.out, [&](int c, int p) {
        Jet<T, K> gradient = {};
        if (points.has(p)) {
            const int64_t at = (points.first + p) * net.out + c;
            gradient.value = from.y[at];
#pragma unroll
            for (int k = 0; k < K; ++k) gradient.tangents[k] = from.jacobian[at * K + k];
            if (net.output == Output::kVelocity) {
                Jet<T, K> before;
                before.load(z + c * kPitch, p);
                gradient = before.back(hyperbolic_tangent(before.value), gradient);
            }
        }
        gradient.store(z + c * kPitch, p);
    });
}

template <class T, int K>
__device__ __forceinline__ void layers_back(const Network<T>& net, T* stage, T* tile, T* sums) {
    for (int l = net.count - 1; l >= 0; --l) {
        const FieldLayer<T>& layer = net.layers[l];
        if (l + 1 < net.count) {
            activate_back<T, K>(layer, tile);
            __syncthreads();
        }
        const T* upstream = tile + layer.z * kPitch;
        if (layer.want_weight)
            add_weight_gradient<T, (K + 1) * tile_points(K)>(net.bfloat16, upstream, layer.fan_out,
                                                             tile + layer.in * kPitch, layer.fan_in,
                                                             sums + layer.sums);
        if (layer.want_bias)
            add_bias_gradient<T, tile_points(K)>(upstream, layer.fan_out,
                                                 sums + layer.sums + layer.fan_in * layer.fan_out);
        if (layer.down < 0) continue;
        T* down = tile + layer.down * kPitch;
        multiply_for<true>(net, layer, upstream, stage, down, [&](int c, int r, T sum) {
            if (c < layer.onto) sum += down[c * kPitch + r];
            for (int i = 0; i < layer.add_count; ++i) sum += tile[(layer.adds[i] + c) * kPitch + r];
            return sum;
        });
        __syncthreads();
    }
}

template <class T, int K>
__global__ void __launch_bounds__(kFieldThreads, 2)
    field_gradients(const __grid_constant__ Network<T> net, const __grid_constant__ Grid grid,
                    const TilePlan plan, const BlockSums where, int64_t begin, int64_t end, const T* x,
                    const OutputGradients<T> from, InputGradients<T> to) {
    NR_DYNAMIC_SHARED(shared);
    T* stage = reinterpret_cast<T*>(shared);
    T* tile = tile_memory<T>(plan, shared);
    T* kept = reinterpret_cast<T*>(plan.sum_room + blockIdx.x * plan.sum_bytes);
    T* sums = kept;
    if (plan.sums_in_shared) sums = reinterpret_cast<T*>(shared + plan.shared - plan.sum_bytes);
    for (size_t i = threadIdx.x; i < plan.sums; i += kFieldThreads) sums[i] = where.go_on ? kept[i] : T(0);
    to.latent_sum = where.latent < 0 ? nullptr : sums + where.latent;
    to.matrix_sum = where.matrix < 0 ? nullptr : sums + where.matrix;
    for (int64_t t = blockIdx.x; t < plan.tiles; t += gridDim.x) {
        __syncthreads();
        const int64_t first = begin + t * tile_points(K);
        const TilePoints<T> points{x, first, end - first};
        load_inputs<T, K>(net, grid, points, tile);
        run_layers<T, K>(net, stage, tile);
        load_output_gradients<T, K>(net, points, from, tile);
        __syncthreads();
        layers_back<T, K>(net, stage, tile, sums);
        inputs_back<T, K>(net, points, to, from.y, tile);
    }
    __syncthreads();
    if (plan.sums_in_shared)
        for (size_t i = threadIdx.x; i < plan.sums; i += kFieldThreads) kept[i] = sums[i];
}

// Where the blocks sum the gradients of parameters, and where those go in the end.
template <class T>
struct Sums {
    Destinations<T> to;
    int latent, matrix;
    T* latent_rows = nullptr;  // for a latent a point, which nobody sums

    // inputs: whether gradients to the coordinates or to features are wanted
    Sums(const FieldShape& shape, const FieldTensors<T>& tensors, bool inputs, NetworkBuilder<T>& built) {
        size_t next = 0;
        T* encoding = shape.encoding == Encoding::kNone ? nullptr : tensors.all.at(next++);
        T* code = shape.latent ? tensors.all.at(next) : nullptr;
        const bool fourier = shape.encoding == Encoding::kFourier && encoding, one = tensors.latent_rows == 1;
        latent_rows = one ? nullptr : code;
        matrix = to.append(fourier ? encoding : nullptr, shape.ndim * shape.frequencies);
        latent = to.append(one ? code : nullptr, shape.latent);
        if (!fourier) matrix = -1;
        if (!one || !code) latent = -1;
        next = built.first_layer();
        const int depth = static_cast<int>(shape.hidden.size());
        for (int stack = 0; stack < (shape.gated() ? 2 : 1); ++stack)
            for (int l = 0; l < depth + (stack == 0 ? 1 : 0); ++l, next += 2) {
                FieldLayer<T>& layer = built.layer(stack, l);
                T *weight = tensors.all.at(next), *bias = tensors.all.at(next + 1);
                layer.want_weight = weight != nullptr;
                layer.want_bias = bias != nullptr;
                layer.sums = to.append(weight, layer.fan_in * layer.fan_out);
                to.append(bias, layer.fan_out);
                if (l == 0 && !inputs && !fourier && !code) layer.down = -1;
            }
    }
};

template <class T, int K>
void run(const Network<T>& net, const Grid& grid, const TilePlan& plan, const BlockSums& sums, int64_t begin,
         int64_t end, const T* x, const OutputGradients<T>& from, const InputGradients<T>& to,
         cudaStream_t stream) {
    launch(field_gradients<T, K>, plan.blocks, kFieldThreads, plan.shared, stream, net, grid, plan, sums,
           begin, end, x, from, to);
}

}  // namespace

size_t field_backward_scratch(const FieldShape& shape, bool jet, int64_t n, size_t item, int device) {
    const FieldTensors<const float> none{std::vector<const float*>(2 * kMaxLayers + 3), 1};
    NetworkBuilder<float> built(shape, none, true);
    const Sums<float> sums(shape, {std::vector<float*>(2 * kMaxLayers + 3), 1}, true, built);
    const int features = built.network().features;
    return plan_tiles(n, jet ? shape.ndim : 0, features, sums.to.size, item, device).scratch();
}

template <class T>
void field_backward(const FieldShape& shape, int64_t begin, int64_t chunk, int64_t n, const T* x,
                    const FieldTensors<const T>& tensors, const FieldGradients<T>& gradients,
                    const FieldTensors<T>& to, void* scratch, Where where) {
    const DeviceGuard guard(where.device);
    const auto stream = static_cast<cudaStream_t>(where.stream);
    NetworkBuilder<T> built(shape, tensors, true);
    const Sums<T> sums(shape, to, gradients.x || gradients.grid || gradients.volume, built);
    const int tangents = gradients.jacobian ? shape.ndim : 0;
    const int features = built.network().features;
    TilePlan plan = plan_tiles(std::min(chunk, n), tangents, features, sums.to.size, sizeof(T), where.device);
    plan.use(scratch);
    const int64_t end = std::min(begin + chunk, n);
    plan.tiles =
        (end - begin + tile_points(tangents) - 1) / tile_points(tangents);  // no more than of the first chunk
    const auto kernel = tangents == 3 ? run<T, 3> : tangents == 2 ? run<T, 2> : run<T, 0>;
    const InputGradients<T> inputs{gradients.x, gradients.grid,   gradients.volume, chunk,
                                   begin,       sums.latent_rows, nullptr,          nullptr};
    kernel(built.network(), shape.grid, plan, {begin > 0, sums.latent, sums.matrix}, begin, end, x,
           {gradients.y, gradients.jacobian}, inputs, stream);
    if (end < n) return;
    launch(add_partials<T>, (sums.to.size + 255) / 256, 256, 0, stream,
           reinterpret_cast<const T*>(plan.sum_room), plan.blocks,
           static_cast<int64_t>(plan.sum_bytes / sizeof(T)), sums.to);
}

#define NR_INSTANTIATE(T)                                                                   \
    template void field_backward<T>(const FieldShape&, int64_t, int64_t, int64_t, const T*, \
                                    const FieldTensors<const T>&, const FieldGradients<T>&, \
                                    const FieldTensors<T>&, void*, Where);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace gpu
}  // namespace nr
