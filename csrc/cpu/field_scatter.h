// The gradients of a field's table and latent volume: encoding gradients wait in a bounded queue, from which
// each level is scattered by one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/field_block.h"
#include "cpu/parallel.h"

namespace nr {

// Numbers of encoding gradient (points x channels) that wait to be scattered.
constexpr int64_t kQueue = 96 * 512;

// Points of a call, in whole blocks, that fit in the queue when the field is asked so often for each.
template <class T>
int64_t points_at_once(const FieldPlan<T>& plan, int64_t n, int evaluations) {
    const int64_t waiting = kQueue / (evaluations * (1 + plan.tangents)) / plan.capacity * plan.capacity;
    return std::min(n, std::max<int64_t>(plan.capacity, waiting));
}

// Encoding gradients of one level (or a share of a volume's channels) until its owner adds them to the table.
template <class T>
struct ScatterTarget {
    const GridLevel* level;
    int features;     // of an entry
    int first, last;  // those of them that are added here
    int64_t column;   // of the level's features in the input
    T* table;
    T* queue;  // [record][channel][features]
};

template <class T>
class FieldScatter {
public:
    // Room for so many records, the encoding gradients of a point each; null gradients are not wanted.
    FieldScatter(const FieldPlan<T>& plan, T* grad_table, T* grad_volume, int64_t records, int threads)
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
                                    channels * (part + 1) / parts, shape.volume_column(), grad_volume,
                                    volume_.data()});
        }
        places_.resize(targets_.empty() ? 0 : records * shape.ndim);
    }

    bool empty() const { return targets_.empty(); }

    void enqueue(const FieldBlock<T>& field, const T* x, int count, int64_t record) {
        std::copy(x, x + count * plan_.shape.ndim, places_.begin() + record * plan_.shape.ndim);
        const int64_t stride = field.input_stride();
        for (const ScatterTarget<T>& target : targets_) {
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
            const ScatterTarget<T>& t = targets_[job];
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
    std::vector<ScatterTarget<T>> targets_;
    AlignedVector<T> table_, volume_, places_;
};

}  // namespace nr
