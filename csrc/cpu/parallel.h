// Threads: OpenMP through the runtime that torch has already loaded; the number comes with every call.
#pragma once

#include <algorithm>
#include <cstdint>

namespace nr {

// Splits [0, n) into at most `threads` contiguous parts of at least `grain` items and runs body(begin, end,
// part). The split depends on n, threads and grain alone, so that per-part partial results add up
// reproducibly.
template <class Body>
void parallel_for(int64_t n, int threads, int64_t grain, Body&& body) {
    if (n <= 0) return;
    const int64_t wanted = std::max<int64_t>(1, n / std::max<int64_t>(1, grain));
    const int parts = static_cast<int>(std::min<int64_t>(std::max(1, threads), wanted));
    if (parts == 1) {
        body(int64_t{0}, n, 0);
        return;
    }
#if defined(_OPENMP)
#pragma omp parallel for num_threads(parts) schedule(static, 1)
#endif
    for (int part = 0; part < parts; ++part) body(n * part / parts, n * (part + 1) / parts, part);
}

// The same with every part beginning at a multiple of `block`, wherever the parts are cut; grain in blocks.
template <class Body>
void parallel_blocks(int64_t n, int64_t block, int threads, int64_t grain, Body&& body) {
    parallel_for((n + block - 1) / block, threads, grain, [&](int64_t begin, int64_t end, int part) {
        body(begin * block, std::min(n, end * block), part);
    });
}

// Runs body(job) for every job of [0, n), each on whichever thread is free. Jobs must not depend on each
// other.
template <class Body>
void parallel_jobs(int64_t n, int threads, Body&& body) {
#if defined(_OPENMP)
#pragma omp parallel for num_threads(std::max(1, threads)) schedule(dynamic, 1) if (n > 1 && threads > 1)
#endif
    for (int64_t job = 0; job < n; ++job) body(job);
}

}  // namespace nr
