// Fields at many points: blocks of points over threads. The backward recomputes the forward of its block, so
// that no activation outlives a block; the gradients of tables and latent volumes go through a bounded queue
// from which each level is scattered by one thread.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu/field_block.h"
#include "cpu/flow.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace nr {

namespace {

// Numbers of encoding gradient (points x channels) that wait to be scattered.
constexpr int64_t kQueue = 96 * 512;

// One thread's field, with its flow where it has one, and its own sums of gradients that points share.
template <class T>
struct Worker {
    FieldBlock<T> field;
    std::unique_ptr<FlowBlock<T>> flow;
    std::vector<T> grad_b, grad_latent;

    Worker(const FieldPlan<T>& plan, bool training) : field(plan, training) {
        if (plan.shape.steps) flow = std::make_unique<FlowBlock<T>>(plan, field);
    }

    // Runs body(start, count) behind the forward of every block of the points [begin, end).
    template <class Body>
    void each_block(const FieldPlan<T>& plan, const T* x, int64_t begin, int64_t end, Body&& body) {
        const int ndim = plan.shape.ndim;
        for (int64_t group = begin; group < end; group += plan.encoded_at_once) {
            const int64_t last = std::min(end, group + plan.encoded_at_once);
            if (!flow) field.encode(x + group * ndim, group, last - group);
            for (int64_t start = group; start < last; start += plan.capacity) {
                const int count = static_cast<int>(std::min<int64_t>(plan.capacity, last - start));
                if (flow)
                    flow->forward(x + start * ndim, start, count);
                else
                    field.forward(x + start * ndim, start - group, count);
                body(start, count);
            }
        }
    }
    const std::vector<T>& y() const { return flow ? flow->y : field.y; }
    const std::vector<T>& jacobian() const { return flow ? flow->jacobian : field.jacobian; }
};

// Encoding gradients of one level (or a share of a volume's channels) until its owner adds them to the table.
template <class T>
struct Target {
    const GridLevel* level;
    int features;     // of an entry
    int first, last;  // those of them that are added here
    int64_t column;   // of the level's features in the input
    T* table;
    T* queue;  // [record][channel][features]
};

template <class T>
class Scatter {
public:
    Scatter(const FieldPlan<T>& plan, T* grad_table, T* grad_volume, int64_t records, int threads)
        : plan_(plan), channels_(1 + plan.tangents), threads_(threads) {
        const FieldShape& shape = plan.shape;
        const int64_t rows = records * channels_;
        const int features = shape.grid.features, channels = shape.volume_channels;
        if (grad_table) {
            table_.resize(rows * shape.grid.features * plan.input.levels.size());
            for (size_t l = 0; l < plan.input.levels.size(); ++l)
                targets_.push_back({&plan.input.levels[l], features, 0, features,
                                    static_cast<int64_t>(l) * features, grad_table,
                                    table_.data() + l * rows * features});
        }
        if (grad_volume) {
            volume_.resize(rows * channels);
            const int parts = std::min(std::max(threads, 1), channels);
            for (int part = 0; part < parts; ++part)
                targets_.push_back({&plan.input.volume_levels[0], channels, channels * part / parts,
                                    channels * (part + 1) / parts, shape.encoded + shape.latent, grad_volume,
                                    volume_.data()});
        }
        places_.resize(targets_.empty() ? 0 : records * shape.ndim);
    }

    bool empty() const { return targets_.empty(); }

    void enqueue(const FieldBlock<T>& field, const T* x, int count, int64_t record) {
        std::copy(x, x + count * plan_.shape.ndim, places_.begin() + record * plan_.shape.ndim);
        const int64_t stride = field.input_stride();
        for (const Target<T>& target : targets_) {
            if (target.first) continue;  // shares the queue of the target before
            with_features(target.features, [&](auto f) {
                const int features = f.value ? f.value : target.features;
                for (int p = 0; p < count; ++p)
                    for (int k = 0; k < channels_; ++k)
                        std::memcpy(target.queue + ((record + p) * channels_ + k) * features,
                                    field.input_gradient() + (k * count + p) * stride + target.column,
                                    features * sizeof(T));
            });
        }
    }

    void flush(int64_t records) {
        parallel_jobs(static_cast<int64_t>(targets_.size()), threads_, [&](int64_t job) {
            const Target<T>& t = targets_[job];
            const bool whole = t.first == 0 && t.last == t.features;
            with_grid(
                plan_.shape.ndim, whole ? t.features : 0, plan_.tangents > 0, [&](auto n, auto f, auto c) {
                    grid_scatter<T, n.value, f.value, c.value>(*t.level, t.features, t.first, t.last,
                                                               places_.data(), records, t.queue, t.table);
                });
        });
    }

private:
    const FieldPlan<T>& plan_;
    int channels_, threads_;
    std::vector<Target<T>> targets_;
    AlignedVector<T> table_, volume_, places_;
};

// The caller's gradients by what they belong to; null where not wanted.
template <class T>
struct Wanted {
    T *x, *b = nullptr, *table = nullptr, *latent = nullptr, *volume = nullptr;
    T* const* layers;
    bool weights = false;

    Wanted(const FieldShape& shape, const std::vector<T*>& grads) : x(grads[0]) {
        size_t next = 1;
        if (shape.encoding == Encoding::kFourier) b = grads[next++];
        if (shape.encoding == Encoding::kGrid) table = grads[next++];
        if (shape.latent) latent = grads[next++];
        if (shape.volume_channels) volume = grads[next++];
        layers = grads.data() + next;
        for (; next < grads.size(); ++next) weights |= grads[next] != nullptr;
    }
};

}  // namespace

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
        Worker<T> worker(plan, false);
        worker.each_block(plan, x, begin, end, [&](int64_t start, int count) {
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
    const Wanted<T> want(shape, grads);
    const int out = shape.out, ndim = shape.ndim;
    const int evaluations = shape.steps ? shape.steps * (shape.rk4 ? 4 : 1) : 1;
    const int64_t waiting = kQueue / (evaluations * (1 + plan.tangents)) / plan.capacity * plan.capacity;
    const int64_t chunk = std::min(n, std::max<int64_t>(plan.capacity, waiting));
    Scatter<T> scatter(plan, want.table, want.volume, chunk * evaluations, threads);
    const int64_t shared_latent = want.latent && !shape.latent_per_point ? shape.latent : 0;
    // A flow needs the gradient of every place it came through.
    const bool want_places = want.x || shape.steps;
    const bool want_input = want_places || want.b || want.latent || !scatter.empty();

    std::vector<std::unique_ptr<Worker<T>>> workers(std::max(threads, 1));
    const int64_t step = scatter.empty() ? n : chunk;
    for (int64_t from = 0; from < n; from += step) {
        const int64_t points = std::min(step, n - from);
        parallel_blocks(points, plan.capacity, threads, 4, [&](int64_t begin, int64_t end, int part) {
            if (!workers[part]) {
                workers[part] = std::make_unique<Worker<T>>(plan, true);
                workers[part]->grad_b.resize(want.b ? static_cast<size_t>(ndim) * shape.frequencies : 0);
                workers[part]->grad_latent.resize(shared_latent);
            }
            Worker<T>& worker = *workers[part];
            FieldBlock<T>& field = worker.field;
            int64_t record = begin * evaluations;
            worker.each_block(plan, x, from + begin, from + end, [&](int64_t first, int count) {
                const auto pullback = [&](const T* place, const T* grad_value, const T* grad_j, T* grad_x) {
                    field.backward(place, first, count, grad_value, grad_j, want.weights, want_input, grad_x,
                                   want.b ? worker.grad_b.data() : nullptr,
                                   shared_latent ? worker.grad_latent.data() : want.latent);
                    if (!scatter.empty()) scatter.enqueue(field, place, count, record);
                    record += count;
                };
                const T* gy = grad_y + first * out;
                const T* gj = grad_jacobian ? grad_jacobian + first * out * ndim : nullptr;
                T* gx = want.x ? want.x + first * ndim : nullptr;
                if (worker.flow)
                    worker.flow->backward(first, count, gy, gj, gx, pullback);
                else
                    pullback(x + first * ndim, gy, gj, gx);
            });
        });
        if (!scatter.empty()) scatter.flush(points * evaluations);
    }
    for (const auto& worker : workers) {
        if (!worker) continue;
        for (size_t i = 0; i < worker->grad_b.size(); ++i) want.b[i] += worker->grad_b[i];
        for (int64_t i = 0; i < shared_latent; ++i) want.latent[i] += worker->grad_latent[i];
        if (want.weights) worker->field.collect(want.layers);
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
