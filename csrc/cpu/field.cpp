// Fields at many points: blocks of points over threads. The backward recomputes the forward of its block, so
// that no activation outlives a block; the gradients of tables and latent volumes go through a bounded queue
// from which each level is scattered by one thread.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/field_worker.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace nr {

template <class T>
int64_t field_kept(const FieldShape& shape, int64_t n, bool jet) {
    return n * (jet ? 1 + shape.ndim : 1) * row_stride<T>(shape.inputs());
}

template <class T>
void field_forward(const FieldShape& shape, int64_t n, const T* x, const std::vector<const T*>& tensors,
                   T* kept, T* y, T* jacobian, int threads) {
    const FieldPlan<T> plan(shape, tensors, jacobian != nullptr, false, kept);
    const int out = shape.out, ndim = shape.ndim;
    parallel_blocks(n, plan.capacity, threads, 4, [&](int64_t begin, int64_t end, int) {
        FieldWorker<T> worker(plan, nullptr);
        worker.each_block(x, begin, end, [&](int64_t start, int count) {
            std::copy(worker.y().begin(), worker.y().begin() + count * out, y + start * out);
            if (jacobian)
                std::copy(worker.jacobian().begin(), worker.jacobian().begin() + count * out * ndim,
                          jacobian + start * out * ndim);
        });
    });
}

template <class T>
void field_backward(const FieldShape& shape, int64_t n, const T* x, const std::vector<const T*>& tensors,
                    T* kept, const T* grad_y, const T* grad_jacobian, const std::vector<T*>& grads,
                    int threads) {
    const FieldPlan<T> plan(shape, tensors, grad_jacobian != nullptr, true, kept);
    const FieldGradients<T> want(shape, grads);
    const int out = shape.out, ndim = shape.ndim;
    const int64_t chunk = points_at_once(plan, n, shape.evaluations());
    FieldScatter<T> scatter(plan, want.table, want.volume, chunk * shape.evaluations(), threads);

    std::vector<std::unique_ptr<FieldWorker<T>>> workers(std::max(threads, 1));
    const int64_t step = scatter.empty() ? n : chunk;
    for (int64_t from = 0; from < n; from += step) {
        const int64_t points = std::min(step, n - from);
        parallel_blocks(points, plan.capacity, threads, 4, [&](int64_t begin, int64_t end, int part) {
            if (!workers[part]) workers[part] = std::make_unique<FieldWorker<T>>(plan, &want);
            FieldWorker<T>& worker = *workers[part];
            worker.each_block(x, from + begin, from + end, [&](int64_t first, int count) {
                worker.backward(x + first * ndim, first, count, grad_y + first * out,
                                grad_jacobian ? grad_jacobian + first * out * ndim : nullptr,
                                want.x ? want.x + first * ndim : nullptr, scatter,
                                (first - from) * shape.evaluations());
            });
        });
        if (!scatter.empty()) scatter.flush(points * shape.evaluations());
    }
    for (const auto& worker : workers) {
        if (!worker) continue;
        worker->collect();
        worker->collect_latent();
    }
}

#define NR_INSTANTIATE(T)                                                                                   \
    template int64_t field_kept<T>(const FieldShape&, int64_t, bool);                                       \
    template void field_forward<T>(const FieldShape&, int64_t, const T*, const std::vector<const T*>&, T*,  \
                                   T*, T*, int);                                                            \
    template void field_backward<T>(const FieldShape&, int64_t, const T*, const std::vector<const T*>&, T*, \
                                    const T*, const T*, const std::vector<T*>&, int);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace nr
