// Feature grids: gathers for values and for the gradient to x; for the table's gradient a scatter, levels
// with few entries through shared memory. A block works on one level, and blocks of one level follow each
// other, so that its table stays in the cache.
#include <algorithm>
#include <cmath>

#include "cuda/fixed_point.h"
#include "cuda/grid.h"
#include "cuda/launch.h"

namespace nr {
namespace gpu {

namespace {

constexpr int kThreads = 256;
constexpr int kPointsPerBlock = 4096;    // of the scatter: a coarse level's sums are flushed once for so many
constexpr size_t kCoarseEntries = 4096;  // a level with no more is summed in shared memory ...
constexpr size_t kCoarseBytes = 64 << 10;  // ... if that takes no more than this

int64_t blocks_for(int64_t count, int64_t each) { return (count + each - 1) / each; }

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    encode(const Grid grid, int64_t blocks, int64_t n, const T* x, const T* table, T* encoded) {
    const int level = static_cast<int>(blockIdx.x / blocks);
    const int64_t p = (blockIdx.x - level * blocks) * kThreads + threadIdx.x;
    if (p >= n) return;
    T at[N];
    for (int d = 0; d < N; ++d) at[d] = x[p * N + d];
    T* out = encoded + (p * grid.count + level) * grid.features;
    gather_level<T, N, 1>(grid, grid.levels[level], table, at, [&](int f, int, T value) { out[f] = value; });
}

// How much larger than the largest gradient the sum of n points' largest possible contributions may be. A
// point's weights add up to 1, and along an axis the slopes' magnitudes to at most 2 * 1.5 (vertices - 1)
// / 2.
double terms_of(const Grid& grid, int64_t n, int rows) {
    double slope = 0;
    for (int level = 0; rows > 1 && level < grid.count; ++level)
        for (int d = 0; d < grid.ndim; ++d) slope = std::max(slope, 1.5 * (grid.levels[level].size[d] - 1));
    return (1 + grid.ndim * slope) * static_cast<double>(n);
}

template <class T>
__device__ __forceinline__ void add(T* at, T value) {
    atomicAdd(at, value);
}

__device__ __forceinline__ void add_pair(float* at, float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    atomicAdd(reinterpret_cast<float2*>(at), make_float2(a, b));
#else
    atomicAdd(at, a);
    atomicAdd(at + 1, b);
#endif
}
template <class T>
__device__ __forceinline__ void add_pair(T* at, T a, T b) {
    atomicAdd(at, a);
    atomicAdd(at + 1, b);
}

// Every point's share in the sums of its corners. element(entry, f) is where a sum lies.
template <class T, int N, class S, class Element>
__device__ __forceinline__ void scatter_point(const Grid& grid, int level, const T* x, int64_t p,
                                              const Upstream<T>& grad, const S& sums, bool pairs,
                                              const Element& element) {
    T at[N];
#pragma unroll
    for (int d = 0; d < N; ++d) at[d] = x[p * N + d];
    const GridLevel& here = grid.levels[level];
    const GridCell<T, N> cell(here, grid.smooth, at);
    const T* g = grad.data + p * grad.point + static_cast<int64_t>(level) * grid.features * grad.feature;
    for (int f = 0; f < grid.features; f += pairs ? 2 : 1, g += (pairs ? 2 : 1) * grad.feature) {
        T of[1 + N][2];
#pragma unroll
        for (int j = 0; j <= N; ++j) {
            of[j][0] = j < grad.rows ? g[j * grad.row] : T(0);
            of[j][1] = j < grad.rows && pairs ? g[j * grad.row + grad.feature] : T(0);
        }
#pragma unroll
        for (int c = 0; c < 1 << N; ++c) {
            T share[2] = {};
#pragma unroll
            for (int j = 0; j <= N; ++j) {
                const T w = cell.weight(c, j - 1);
                if (j < grad.rows) {  // else 0 times a slope, which may be infinite
                    share[0] += w * of[j][0];
                    share[1] += w * of[j][1];
                }
            }
            auto* to = element(cell.entry(here, c), f);
            if (pairs)
                add_pair(to, sums.of(share[0]), sums.of(share[1]));
            else
                add(to, sums.of(share[0]));
        }
    }
}

template <class T, int N, bool fixed>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 1)
    scatter(const Grid grid, int first, bool coarse, int64_t blocks, int64_t n, const T* x,
            const Upstream<T> grad, typename Sums<T, fixed>::Type* to, double terms,
            const uint64_t* largest) {
    NR_DYNAMIC_SHARED(memory);
    using Type = typename Sums<T, fixed>::Type;
    const int level = first + static_cast<int>(blockIdx.x / blocks);
    const int64_t begin = (blockIdx.x % blocks) * kPointsPerBlock;
    const int64_t end = begin + kPointsPerBlock < n ? begin + kPointsPerBlock : n;
    const Sums<T, fixed> sums(terms, largest);
    if (!coarse) {
        const bool pairs = in_pairs(grid);
        for (int64_t p = begin + threadIdx.x; p < end; p += kThreads)
            scatter_point<T, N>(grid, level, x, p, grad, sums, pairs, [&](int64_t entry, int f) {
                return to + entry * grid.entry_stride + f * grid.channel_stride;
            });
        return;
    }
    Type* own = reinterpret_cast<Type*>(memory);
    const int64_t offset = grid.levels[level].offset;
    const int entries =
        static_cast<int>((level + 1 < grid.count ? grid.levels[level + 1].offset : grid.entries) - offset);
    for (int i = threadIdx.x; i < entries * grid.features; i += kThreads) own[i] = Type(0);
    __syncthreads();
    for (int64_t p = begin + threadIdx.x; p < end;
         p += kThreads)  // in shared memory two atomics cost what a pair does
        scatter_point<T, N>(grid, level, x, p, grad, sums, false, [&](int64_t entry, int f) {
            return own + static_cast<int>(entry - offset) * grid.features + f;
        });
    __syncthreads();
    for (int i = threadIdx.x; i < entries * grid.features; i += kThreads) {
        const int64_t entry = offset + i / grid.features;
        if (own[i] != Type(0))
            add(to + entry * grid.entry_stride + i % grid.features * grid.channel_stride, own[i]);
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    find_largest(int64_t n, int features, const Upstream<T> grad, uint64_t* largest) {
    Largest found;
    for (int64_t p = int64_t{blockIdx.x} * kThreads + threadIdx.x; p < n; p += int64_t{gridDim.x} * kThreads)
        for (int j = 0; j < grad.rows; ++j)
            for (int f = 0; f < features; ++f)
                found.see(std::fabs(
                    static_cast<double>(grad.data[j * grad.row + f * grad.feature + p * grad.point])));
    found.tell(largest);
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads, 2)
    gradient_x(const Grid grid, int64_t n, const T* x, const T* table, const Upstream<T> grad, T* grad_x,
               bool add) {
    const int64_t p = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (p >= n) return;
    T at[N], sum[N] = {};
    for (int d = 0; d < N; ++d) at[d] = x[p * N + d];
    const bool pairs = in_pairs(grid);
#pragma unroll 1
    for (int level = 0; level < grid.count; ++level) {
        const GridLevel& here = grid.levels[level];
        const GridCell<T, N> cell(here, grid.smooth, at);
        const T* g = grad.data + p * grad.point + static_cast<int64_t>(level) * grid.features * grad.feature;
#pragma unroll 1  // a level's loads are enough to have under way
        for (int f = 0; f < grid.features; f += pairs ? 2 : 1, g += (pairs ? 2 : 1) * grad.feature)
#pragma unroll 2
            for (int c = 0; c < 1 << N; ++c) {
                const Pair<T> value = load_features(grid, table, cell.entry(here, c), f, pairs);
#pragma unroll
                for (int j = 0; j <= N; ++j) {
                    if (j >= grad.rows) continue;
                    T dot = value.v[0] * g[j * grad.row];
                    if (pairs) dot += value.v[1] * g[j * grad.row + grad.feature];
#pragma unroll
                    for (int d = 0; d < N; ++d) sum[d] += dot * cell.weight(c, j - 1, d);
                }
            }
    }
    for (int d = 0; d < N; ++d) grad_x[p * N + d] = sum[d] + (add ? grad_x[p * N + d] : T(0));
}

template <class T, int N, bool fixed>
void run_scatter(const Grid& grid, int64_t n, const T* x, const Upstream<T>& grad,
                 typename Sums<T, fixed>::Type* to, double terms, const uint64_t* largest,
                 cudaStream_t stream) {
    const size_t item = sizeof(typename Sums<T, fixed>::Type) * grid.features;
    int coarse = 0;
    size_t shared = 0;
    for (; coarse < grid.count; ++coarse) {
        const size_t entries = grid.level_entries(coarse);
        if (entries > kCoarseEntries || entries * item > kCoarseBytes) break;
        shared = std::max(shared, entries * item);
    }
    const int64_t blocks = blocks_for(n, kPointsPerBlock);
    launch(scatter<T, N, fixed>, blocks * coarse, kThreads, shared, stream, grid, 0, true, blocks, n, x, grad,
           to, terms, largest);
    launch(scatter<T, N, fixed>, blocks * (grid.count - coarse), kThreads, 0, stream, grid, coarse, false,
           blocks, n, x, grad, to, terms, largest);
}

}  // namespace

Grid feature_grid(int ndim, const std::vector<int>& resolutions, int features, int64_t table_size,
                  bool smooth) {
    if (resolutions.size() > kMaxLevels)
        throw std::runtime_error("the cuda backend has feature grids of at most 32 levels");
    Grid grid;
    grid.ndim = ndim;
    grid.features = features;
    grid.smooth = smooth;
    grid.entry_stride = features;
    grid.channel_stride = 1;
    for (int resolution : resolutions) {
        int64_t vertices = 1;
        for (int d = 0; d < ndim && vertices <= table_size; ++d) vertices *= resolution;
        const bool hashed = vertices > table_size;
        grid.levels[grid.count++] = {{resolution, resolution, resolution},
                                     hashed ? static_cast<uint32_t>(table_size - 1) : 0u,
                                     grid.entries};
        grid.entries += hashed ? table_size : vertices;
    }
    return grid;
}

Grid volume_grid(const std::vector<int>& size, int channels) {
    Grid grid;
    grid.ndim = static_cast<int>(size.size());
    grid.count = 1;
    grid.features = channels;
    grid.entries = 1;
    grid.levels[0] = {{1, 1, 1}, 0u, 0};
    for (int d = 0; d < grid.ndim; ++d) {
        grid.levels[0].size[d] = size[d];
        grid.entries *= size[d];
    }
    grid.entry_stride = 1;
    grid.channel_stride = grid.entries;
    return grid;
}

template <class T>
void grid_encode(const Grid& grid, int64_t n, const T* x, const T* table, T* encoded, Where where) {
    const DeviceGuard guard(where.device);
    const int64_t blocks = blocks_for(n, kThreads);
    launch(grid.ndim == 3 ? encode<T, 3> : encode<T, 2>, blocks * grid.count, kThreads, 0,
           static_cast<cudaStream_t>(where.stream), grid, blocks, n, x, table, encoded);
}

template <class T>
void grid_scatter(const Grid& grid, int64_t n, const T* x, const Upstream<T>& grad, T* grad_table,
                  int64_t* fixed_point, uint64_t* largest, Where where) {
    if (n == 0) return;
    const DeviceGuard guard(where.device);
    const auto stream = static_cast<cudaStream_t>(where.stream);
    if (fixed_point == nullptr) {
        const auto run = grid.ndim == 3 ? run_scatter<T, 3, false> : run_scatter<T, 2, false>;
        run(grid, n, x, grad, grad_table, 0, nullptr, stream);
        return;
    }
    auto* sums = reinterpret_cast<unsigned long long*>(fixed_point);
    launch(clear_largest<uint64_t>, 1, 1, 0, stream, largest);
    launch(find_largest<T>, std::min<int64_t>(blocks_for(n, kThreads), 1024), kThreads, 0, stream, n,
           grid.count * grid.features, grad, largest);
    const auto run = grid.ndim == 3 ? run_scatter<T, 3, true> : run_scatter<T, 2, true>;
    const double terms = terms_of(grid, n, grad.rows);
    run(grid, n, x, grad, sums, terms, largest, stream);
    const int64_t count = grid.entries * grid.features;
    launch(add_fixed<T>, blocks_for(count, kThreads), kThreads, 0, stream, count, terms, sums, largest,
           grad_table);
}

template <class T>
void grid_gradient_x(const Grid& grid, int64_t n, const T* x, const T* table, const Upstream<T>& grad,
                     T* grad_x, bool add, Where where) {
    const DeviceGuard guard(where.device);
    launch(grid.ndim == 3 ? gradient_x<T, 3> : gradient_x<T, 2>, blocks_for(n, kThreads), kThreads, 0,
           static_cast<cudaStream_t>(where.stream), grid, n, x, table, grad, grad_x, add);
}

#define NR_INSTANTIATE(T)                                                                                    \
    template void grid_encode<T>(const Grid&, int64_t, const T*, const T*, T*, Where);                       \
    template void grid_scatter<T>(const Grid&, int64_t, const T*, const Upstream<T>&, T*, int64_t*,          \
                                  uint64_t*, Where);                                                         \
    template void grid_gradient_x<T>(const Grid&, int64_t, const T*, const T*, const Upstream<T>&, T*, bool, \
                                     Where);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace gpu
}  // namespace nr
