// Runs the blocks of a launch one after another, each as a set of fibers: a thread runs until it reaches a
// barrier or a warp operation, then the next one does. A barrier is passed when every thread of the block has
// reached the same one. What real hardware would forgive by luck is an error here: threads that end or wait
// elsewhere while others are at a barrier, and (since order() changes who runs first) results that depend on
// a barrier that is not there.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_on_cpu {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

struct Fiber {
    static constexpr size_t kStack = 256 * 1024;
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    State state = State::kReady;
    dim3 thread;
    unsigned rank = 0;      // in the block
    const char* file = "";  // where it waits
    int line = 0;
    uint32_t mask = 0;          // of the warp operation that it waits in
    unsigned char offered[16];  // to the other lanes
    unsigned char seen[16];     // what this lane had offered when all had arrived
    void* fake_stack = nullptr;
};

// 0: threads and blocks in ascending order; 1: descending; above: shuffled with this seed, threads anew at
// every barrier.
inline unsigned& order() {
    static unsigned value = 0;
    return value;
}

// What cudaDevAttrMaxSharedMemoryPerBlockOptin answers.
inline size_t& shared_memory_size() {
    static size_t value = 99 * 1024;
    return value;
}

struct Machine {
    dim3 grid, block, index;
    std::vector<std::unique_ptr<Fiber>> fibers;
    Fiber* running = nullptr;
    unsigned count = 0;  // threads of the block
    ucontext_t scheduler;
    std::function<void()> kernel;
    std::unique_ptr<unsigned char[]> shared;
    uint32_t reached = 0;  // barriers passed by the block
#if defined(__SANITIZE_ADDRESS__)
    const void* stack = nullptr;
    size_t stack_size = 0;
    void* fake_stack = nullptr;
#endif
};

inline Machine& machine() {
    static Machine value;
    return value;
}

inline Fiber& self() { return *machine().running; }
inline unsigned char* dynamic_shared() { return machine().shared.get(); }

// Fiber -> scheduler.
inline void wait() {
    Machine& m = machine();
    Fiber* me = m.running;
#if defined(__SANITIZE_ADDRESS__)
    void** keep = me->state == State::kDone ? nullptr : &me->fake_stack;
    __sanitizer_start_switch_fiber(keep, m.stack, m.stack_size);
#endif
    swapcontext(&me->context, &m.scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(me->fake_stack, &m.stack, &m.stack_size);
#endif
}

inline void enter() {
    Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &m.stack, &m.stack_size);
#endif
    m.kernel();
    m.running->state = State::kDone;
    wait();
}

inline void resume(Fiber& fiber) {
    Machine& m = machine();
    m.running = &fiber;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&m.fake_stack, fiber.stack.get(), Fiber::kStack);
#endif
    swapcontext(&m.scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(m.fake_stack, nullptr, nullptr);
#endif
    m.running = nullptr;
}

inline void stop_at(State state, const char* file, int line) {
    Fiber& me = self();
    me.state = state;
    me.file = file;
    me.line = line;
    wait();
}

inline void barrier(const char* file, int line) { stop_at(State::kAtBarrier, file, line); }

// All lanes of the mask meet; afterwards lane_value tells what each had offered.
inline void meet(uint32_t mask, const void* value, size_t size, const char* file, int line) {
    Fiber& me = self();
    if (!(mask >> (me.rank % 32) & 1)) throw Error("a lane calls a warp operation whose mask leaves it out");
    me.mask = mask;
    std::memset(me.offered, 0, sizeof me.offered);
    if (size) std::memcpy(me.offered, value, size);
    stop_at(State::kAtWarp, file, line);
}

inline const unsigned char* lane_value(unsigned lane) {
    Machine& m = machine();
    const unsigned rank = self().rank / 32 * 32 + lane;
    return m.fibers[rank < m.count ? rank : self().rank]->seen;
}

inline std::string place(const Fiber& f) { return std::string(f.file) + ":" + std::to_string(f.line); }

// Lets the lanes go whose whole mask waits at the same place; whether there were any.
inline bool release_warps() {
    Machine& m = machine();
    bool released = false;
    for (unsigned first = 0; first < m.count; ++first) {
        Fiber& f = *m.fibers[first];
        if (f.state != State::kAtWarp) continue;
        const unsigned base = first / 32 * 32;
        std::vector<Fiber*> lanes;
        bool complete = true;
        for (unsigned lane = 0; lane < 32 && base + lane < m.count; ++lane) {
            if (!(f.mask >> lane & 1)) continue;
            Fiber& other = *m.fibers[base + lane];
            complete &= other.state == State::kAtWarp && other.mask == f.mask && other.line == f.line &&
                        std::strcmp(other.file, f.file) == 0;
            lanes.push_back(&other);
        }
        if (!complete) continue;
        for (Fiber* lane : lanes) {
            std::memcpy(lane->seen, lane->offered, sizeof lane->seen);
            lane->state = State::kReady;
        }
        released = true;
    }
    return released;
}

inline void release_barrier() {
    Machine& m = machine();
    const Fiber* at = nullptr;
    const Fiber* elsewhere = nullptr;
    unsigned waiting = 0;
    for (unsigned i = 0; i < m.count; ++i) {
        const Fiber& f = *m.fibers[i];
        if (f.state == State::kAtWarp)
            throw Error("a warp operation is reached by only part of its lanes: " + place(f));
        if (f.state != State::kAtBarrier) continue;
        if (at && (at->line != f.line || std::strcmp(at->file, f.file) != 0)) elsewhere = &f;
        at = at ? at : &f;
        ++waiting;
    }
    if (elsewhere) throw Error("threads wait at two barriers: " + place(*at) + " and " + place(*elsewhere));
    if (waiting < m.count) throw Error("a barrier is reached by only part of the block: " + place(*at));
    for (unsigned i = 0; i < m.count; ++i) m.fibers[i]->state = State::kReady;
    ++m.reached;
}

inline std::vector<unsigned> sequence(unsigned count, unsigned salt) {
    std::vector<unsigned> ids(count);
    for (unsigned i = 0; i < count; ++i) ids[i] = order() == 1 ? count - 1 - i : i;
    if (order() < 2) return ids;
    std::mt19937 random(order() * 2654435761u + salt);
    for (unsigned i = count; i > 1; --i) std::swap(ids[i - 1], ids[random() % i]);
    return ids;
}

inline void run_block() {
    Machine& m = machine();
    while (m.fibers.size() < m.count) m.fibers.push_back(std::make_unique<Fiber>());
    for (unsigned i = 0; i < m.count; ++i) {
        Fiber& f = *m.fibers[i];
        f.state = State::kReady;
        f.rank = i;
        f.thread = dim3(i % m.block.x, i / m.block.x % m.block.y, i / m.block.x / m.block.y);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get();
        f.context.uc_stack.ss_size = Fiber::kStack;
        f.context.uc_link = nullptr;
        makecontext(&f.context, enter, 0);
    }
    m.reached = 0;
    for (;;) {
        unsigned done = 0;
        for (unsigned i : sequence(m.count, m.reached)) {
            Fiber& f = *m.fibers[i];
            if (f.state == State::kReady) resume(f);
            done += f.state == State::kDone;
        }
        if (done == m.count) return;
        if (!release_warps()) release_barrier();
    }
}

inline void run(dim3 grid, dim3 block, size_t shared, std::function<void()> kernel) {
    Machine& m = machine();
    m.grid = grid;
    m.block = block;
    m.count = block.x * block.y * block.z;
    m.kernel = std::move(kernel);
    if (m.count == 0 || m.count > 1024) throw Error("a block has 1 to 1024 threads");
    if (shared > shared_memory_size()) throw Error("more dynamic shared memory than the device has");
    const unsigned blocks = grid.x * grid.y * grid.z;
    for (unsigned i : sequence(blocks, 0)) {
        m.index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
        m.shared.reset(new unsigned char[shared]);
        std::memset(m.shared.get(), 0xff, shared);  // NaN: what nobody has written must not matter
        run_block();
    }
}

}  // namespace cuda_on_cpu
