// Large outputs are fresh pages; the first touch of every 4 kB costs a fault, which adds up to more than the
// work itself. Where the system gives large pages on request, they are requested.
#pragma once

#include <cstddef>
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace nr {

// A hint before the first write to n elements; null is allowed.
template <class T>
void expect_writes(T* p, int64_t n) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t page = std::uintptr_t{2} << 20;
    const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(p) + page - 1) / page * page;
    const std::uintptr_t end = reinterpret_cast<std::uintptr_t>(p + n) / page * page;
    // A refusal changes nothing but time.
    if (p != nullptr && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)p;
    (void)n;
#endif
}

}  // namespace nr
