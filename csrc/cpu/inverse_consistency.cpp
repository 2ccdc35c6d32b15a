// Gradient inverse consistency of two maps, with its gradient, in one pass: a block of points goes through
// both maps in either order and, while their activations are at hand, back again. Nothing is recomputed, and
// nothing outlives the block but sums.
#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/field_worker.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace nr {

namespace {

constexpr int64_t kFewest = 8;  // points that are worth a thread

// Squared entries of E = A + B + B A, summed, for the Jacobians A of the first displacement and B of the
// second; and from 2 E times `scale` the gradients of both.
template <class T, int ND>
double squared_error(const T* a, const T* b, T scale, T* grad_a, T* grad_b) {
    double sum = 0;
    T error[ND * ND];
    for (int i = 0; i < ND; ++i)
        for (int k = 0; k < ND; ++k) {
            T e = a[i * ND + k] + b[i * ND + k];
            for (int m = 0; m < ND; ++m) e += b[i * ND + m] * a[m * ND + k];
            sum += static_cast<double>(e) * e;
            error[i * ND + k] = 2 * scale * e;
        }
    for (int i = 0; i < ND; ++i)
        for (int k = 0; k < ND; ++k) {
            T through_a = error[i * ND + k], through_b = through_a;
            for (int m = 0; m < ND; ++m) {
                through_a += b[m * ND + i] * error[m * ND + k];
                through_b += error[i * ND + m] * a[k * ND + m];
            }
            grad_a[i * ND + k] = through_a;
            grad_b[i * ND + k] = through_b;
        }
    return sum;
}

template <class T>
double squared_errors(int ndim, int count, const T* a, const T* b, T scale, T* grad_a, T* grad_b) {
    double sum = 0;
    for (int p = 0; p < count; ++p) {
        const int at = p * ndim * ndim;
        sum += (ndim == 3 ? squared_error<T, 3> : squared_error<T, 2>)(a + at, b + at, scale, grad_a + at,
                                                                       grad_b + at);
    }
    return sum;
}

// One of the two maps, which every point asks twice.
template <class T>
struct Side {
    FieldPlan<T> plan;
    std::optional<FieldGradients<T>> want;
    std::optional<FieldScatter<T>> scatter;
    int64_t chunk;
    std::vector<std::unique_ptr<FieldWorker<T>>> workers;

    Side(const FieldShape& shape, int64_t n, const std::vector<const T*>& tensors,
         const std::vector<T*>& grads, int threads)
        : plan(shape, tensors, true, !grads.empty(), nullptr), workers(threads) {
        plan.encoded_at_once = plan.capacity;  // a block's activations are used before the next one comes
        chunk = points_at_once(plan, n, 2 * shape.evaluations());
        if (grads.empty()) return;
        want.emplace(shape, grads);
        scatter.emplace(plan, want->table, want->volume, 2 * chunk * shape.evaluations(), threads);
    }

    FieldWorker<T>& worker(int part) {
        if (!workers[part]) workers[part] = std::make_unique<FieldWorker<T>>(plan, want ? &*want : nullptr);
        return *workers[part];
    }
};

// One thread's blocks, there and back, and buffers between the two maps.
template <class T>
class Round {
public:
    Round(int ndim, int capacity, bool training)
        : ndim_(ndim), places_(capacity * ndim), grad_places_(training ? capacity * ndim : 0) {
        grad_first_.resize(capacity * ndim * ndim);
        grad_second_.resize(grad_first_.size());
        nothing_.resize(grad_places_.size());
    }

    // Sum of squared errors of the block of points at x; `record`: of its encoding gradients.
    double run(Side<T>& first, Side<T>& second, int part, const T* x, int64_t number, int count, T scale,
               int64_t record) {
        FieldWorker<T>&one = first.worker(part), &other = second.worker(part);
        const int size = count * ndim_;
        one.forward(x, number, count);
        for (int i = 0; i < size; ++i) places_[i] = x[i] + one.y()[i];
        other.forward(places_.data(), number, count);
        const double sum = squared_errors(ndim_, count, one.jacobian().data(), other.jacobian().data(), scale,
                                          grad_first_.data(), grad_second_.data());
        if (!first.want) return sum;
        std::fill(grad_places_.begin(), grad_places_.end(), T(0));
        other.backward(places_.data(), number, count, nothing_.data(), grad_second_.data(),
                       grad_places_.data(), *second.scatter, record);
        T* grad_x = first.want->x ? first.want->x + number * ndim_ : nullptr;
        if (grad_x)
            for (int i = 0; i < size; ++i) grad_x[i] += grad_places_[i];
        one.backward(x, number, count, grad_places_.data(), grad_first_.data(), grad_x, *first.scatter,
                     record);
        return sum;
    }

private:
    int ndim_;
    std::vector<T> places_, grad_places_, grad_first_, grad_second_, nothing_;
};

}  // namespace

template <class T>
double gradient_inverse_consistency(const FieldShape& shape, int64_t n, const T* x,
                                    const std::vector<const T*>& there, const std::vector<const T*>& back,
                                    const std::vector<T*>& grads_there, const std::vector<T*>& grads_back,
                                    int threads) {
    if (n == 0) return std::numeric_limits<double>::quiet_NaN();  // as any mean of nothing
    threads = std::max(threads, 1);
    const bool training = !grads_there.empty();
    std::optional<Side<T>> built[2];
    parallel_jobs(2, threads, [&](int64_t side) {
        built[side].emplace(shape, n, side ? back : there, side ? grads_back : grads_there, threads);
    });
    Side<T>* sides[] = {&*built[0], &*built[1]};
    const int64_t entries = 2 * n * shape.ndim * shape.ndim, chunk = sides[0]->chunk;
    const T scale = T(1) / static_cast<T>(entries);
    const int evaluations = shape.evaluations(), capacity = sides[0]->plan.capacity;
    std::vector<double> sums(threads);
    for (int64_t from = 0; from < n; from += chunk) {
        const int64_t points = std::min(chunk, n - from);
        parallel_for(points, threads, kFewest, [&](int64_t begin, int64_t end, int part) {
            Round<T> round(shape.ndim, capacity, training);
            for (int64_t start = from + begin; start < from + end; start += capacity) {
                const int count = static_cast<int>(std::min<int64_t>(capacity, from + end - start));
                for (int order = 0; order < 2; ++order)
                    sums[part] +=
                        round.run(*sides[order], *sides[1 - order], part, x + start * shape.ndim, start,
                                  count, scale, (2 * (start - from) + order * count) * evaluations);
            }
        });
        if (training)
            for (Side<T>* side : sides)
                if (!side->scatter->empty()) side->scatter->flush(2 * points * evaluations);
    }
    double sum = 0;
    for (double part : sums) sum += part;
    if (!training) return sum / static_cast<double>(entries);
    parallel_jobs(2, threads, [&](int64_t side) {
        for (const auto& worker : sides[side]->workers)
            if (worker) worker->collect();
    });
    for (Side<T>* side : sides)  // both sides share it
        for (const auto& worker : side->workers)
            if (worker) worker->collect_latent();
    return sum / static_cast<double>(entries);
}

#define NR_INSTANTIATE(T)                                                                                 \
    template double gradient_inverse_consistency<T>(                                                      \
        const FieldShape&, int64_t, const T*, const std::vector<const T*>&, const std::vector<const T*>&, \
        const std::vector<T*>&, const std::vector<T*>&, int);
NR_INSTANTIATE(float)
NR_INSTANTIATE(double)
#undef NR_INSTANTIATE

}  // namespace nr
