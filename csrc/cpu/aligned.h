// Arrays that begin on a cache line: a vector of 64 bytes that crosses one costs two accesses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "cpu/memory.h"

namespace nr {

template <class T>
struct LineAllocator {
    using value_type = T;
    static constexpr std::align_val_t kLine{64};

    LineAllocator() = default;
    template <class U>
    LineAllocator(const LineAllocator<U>&) {}

    T* allocate(std::size_t n) {
        T* p = static_cast<T*>(::operator new(n * sizeof(T), kLine));
        expect_writes(p, static_cast<int64_t>(n));
        return p;
    }
    void deallocate(T* p, std::size_t) { ::operator delete(p, kLine); }

    template <class U>
    bool operator==(const LineAllocator<U>&) const {
        return true;
    }
    template <class U>
    bool operator!=(const LineAllocator<U>&) const {
        return false;
    }
};

template <class T>
using AlignedVector = std::vector<T, LineAllocator<T>>;

}  // namespace nr
