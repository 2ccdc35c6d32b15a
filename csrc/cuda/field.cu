// The field's forward: a block takes a tile of points from their coordinates to the output.
#include "cuda/field.h"
#include "cuda/field_tile.h"

namespace nr {
namespace gpu {

namespace {

template <class T, int K>
__device__ __forceinline__ void store_outputs(const Network<T>& net, const TilePoints<T>& points,
                                              const T* tile, T* y, T* jacobian) {
    const T* z = tile + net.layers[net.count - 1].z * kPitch;
    for_each_point<tile_points(K)>(net.out, [&](int c, int p) {
        if (!points.has(p)) return;
        Jet<T, K> u;
        u.load(z + c * kPitch, p);
        if (net.output == Output::kVelocity) u = u.through(hyperbolic_tangent(u.value));
        if (net.output == Output::kPosition) {
            u.value -= points.at(net, p, c);
#pragma unroll
            for (int k = 0; k < K; ++k) u.tangents[k] -= k == c ? T(1) : T(0);
        }
        const int64_t at = (points.first + p) * net.out + c;
        y[at] = u.value;
#pragma unroll
        for (int k = 0; k < K; ++k) jacobian[at * K + k] = u.tangents[k];
    });
}

template <class T, int K>
__global__ void __launch_bounds__(kFieldThreads, sizeof(T) == 4 ? 3 : 2)
    field_values(const __grid_constant__ Network<T> net, const __grid_constant__ Grid grid,
                 const TilePlan plan, int64_t n, const T* x, T* y, T* jacobian) {
    NR_DYNAMIC_SHARED(shared);
    T* stage = reinterpret_cast<T*>(shared);
    T* tile = tile_memory<T>(plan, shared);
    for (int64_t t = blockIdx.x; t < plan.tiles; t += gridDim.x) {
        const int64_t first = t * tile_points(K);
        const TilePoints<T> points{x, first, n - first};
        load_inputs<T, K>(net, grid, points, tile);
        run_layers<T, K>(net, stage, tile);
        store_outputs<T, K>(net, points, tile, y, jacobian);
        __syncthreads();
    }
}

template <class T, int K>
void run(const Network<T>& net, const Grid& grid, const TilePlan& plan, int64_t n, const T* x, T* y,
         T* jacobian, cudaStream_t stream) {
    launch(field_values<T, K>, plan.blocks, kFieldThreads, plan.shared, stream, net, grid, plan, n, x, y,
           jacobian);
}

}  // namespace

size_t field_forward_scratch(const FieldShape& shape, bool jet, int64_t n, size_t item, int device) {
    const FieldTensors<const float> none{std::vector<const float*>(2 * kMaxLayers + 3), 1};
    const int features = NetworkBuilder<float>(shape, none, false).network().features;
    return plan_tiles(n, jet ? shape.ndim : 0, features, 0, item, device).scratch();
}

template <class T>
void field_forward(const FieldShape& shape, int64_t n, const T* x, const FieldTensors<const T>& tensors, T* y,
                   T* jacobian, void* scratch, Where where) {
    const DeviceGuard guard(where.device);
    const NetworkBuilder<T> built(shape, tensors, false);
    const int tangents = jacobian ? shape.ndim : 0;
    TilePlan plan = plan_tiles(n, tangents, built.network().features, 0, sizeof(T), where.device);
    plan.use(scratch);
    const auto kernel = tangents == 3 ? run<T, 3> : tangents == 2 ? run<T, 2> : run<T, 0>;
    kernel(built.network(), shape.grid, plan, n, x, y, jacobian, static_cast<cudaStream_t>(where.stream));
}

#define NR_INSTANTIATE(T)                                                                                  \
    template void field_forward<T>(const FieldShape&, int64_t, const T*, const FieldTensors<const T>&, T*, \
                                   T*, void*, Where);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace gpu
}  // namespace nr
