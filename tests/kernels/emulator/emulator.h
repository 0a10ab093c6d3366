// Runs a CUDA source on a CPU, thread by thread: what `kernels/common/device.cuh` includes where no
// CUDA compiler compiles it. README.md beside this says how to use it and what it finds.
//
// Blocks run one after the other. The threads of a block are fibers of one system thread: each runs
// until it must wait for others (a barrier, a warp operation) and then hands over, so a run is
// repeatable; in which order ready threads go on is the caller's choice.
#pragma once

#undef _FORTIFY_SOURCE  // longjmp between stacks is what a fiber does
#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <source_location>
#include <sys/mman.h>
#include <utility>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using cudaStream_t = void*;
inline dim3 blockDim, gridDim;
inline uint3 threadIdx, blockIdx;
constexpr int warpSize = 32;

namespace emulator {

using Where = std::source_location;
constexpr size_t SHARED_LIMIT = 232448;  // bytes that a block of sm_90 can have: 227 KB
constexpr size_t STACK = 256 * 1024;

// Memory between two pages that nobody may touch; its last byte is the last of its page, so that
// the first access behind it is caught. 16 bytes is what vector accesses ask of an address.
struct Region {
    char *base = nullptr, *begin = nullptr;
    size_t mapped = 0, bytes = 0;

    void allocate(size_t wanted) {
        size_t page = sysconf(_SC_PAGESIZE);
        bytes = (wanted + 15) / 16 * 16;
        mapped = (bytes + page - 1) / page * page + 2 * page;
        base = static_cast<char*>(
            mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        mprotect(base + page, mapped - 2 * page, PROT_READ | PROT_WRITE);
        begin = base + mapped - page - bytes;
        poison();
    }
    void release() { if (base) munmap(base, mapped); base = nullptr; }
    void poison() { memset(begin, 0xFF, bytes); }  // NaN in every float type
    void protect(bool writable) {
        size_t page = sysconf(_SC_PAGESIZE);
        mprotect(base + page, mapped - 2 * page, writable ? PROT_READ | PROT_WRITE : PROT_READ);
    }
    bool holds(const void* p, size_t n = 1) const {
        auto at = static_cast<const char*>(p);
        return base && at >= begin && at + n <= begin + bytes;
    }
    bool guards(const void* p) const {
        auto at = static_cast<const char*>(p);
        return base && at >= base && at < base + mapped;
    }
};

enum class State { ready, block, warp, done };

struct Fiber {
    jmp_buf at;
    ucontext_t start;
    char* stack = nullptr;
    bool started = false;
    State state = State::done;
    uint3 index{};
    int number = 0;
    // what a waiting thread brought to a warp operation; it lies on the thread's own stack
    const void* in = nullptr;
    void* out = nullptr;
    uint32_t mask = 0;
    const char* what = "";
    Where where;
    struct Copy { void* to; const void* from; int bytes, given; };
    std::vector<std::deque<Copy>> groups{1};  // cp.async: the last one is not committed yet
};

enum Order { FORWARD, REVERSED, SHUFFLED };

struct Machine {
    std::vector<Fiber> fibers;
    std::vector<int> ready;
    Fiber* now = nullptr;
    jmp_buf scheduler;
    sigjmp_buf failed;
    void (*entry)(void*) = nullptr;
    void* argument = nullptr;
    Region dynamic;
    std::vector<std::pair<const void*, Region>> statics;
    std::vector<Region> global;
    Order order = FORWARD;
    uint64_t seed = 1;
    int waiting = 0, alive = 0;
    size_t conflicts = 0;  // extra passes of ldmatrix over shared memory
    char message[1024] = "";

    unsigned random() { seed = seed * 6364136223846793005u + 1442695040888963407u; return seed >> 33; }
    std::vector<Fiber*> warp(const Fiber& of) {
        std::vector<Fiber*> lanes;
        int first = of.number / 32 * 32;
        for (int i = first; i < std::min<int>(first + 32, fibers.size()); i++)
            lanes.push_back(&fibers[i]);
        return lanes;
    }
};
inline Machine machine;

[[noreturn]] inline void fault(const char* what, Where where = Where::current()) {
    auto& m = machine;
    char* to = m.message;
    char* end = to + sizeof m.message;
    to += snprintf(to, end - to, "%s", what);
    if (m.now) {
        auto& t = m.now->index;
        snprintf(to, end - to, ": block (%u, %u, %u), thread (%u, %u, %u), %s:%u", blockIdx.x,
                 blockIdx.y, blockIdx.z, t.x, t.y, t.z, where.file_name(), where.line());
    }
    siglongjmp(m.failed, 1);
}

inline void wait_here(Fiber& fiber, State state) {
    fiber.state = state;
    if (!_setjmp(fiber.at)) _longjmp(machine.scheduler, 1);
}

inline void wake(Fiber& fiber) {
    fiber.state = State::ready;
    machine.ready.push_back(fiber.number);
}

template <class F> void in_order(F each) {
    int n = machine.fibers.size();
    for (int i = 0; i < n; i++) each(machine.fibers[machine.order == FORWARD ? n - 1 - i : i]);
}

inline void barrier(Where where) {
    auto& m = machine;
    Fiber& self = *m.now;
    self.where = where;
    if (m.alive < static_cast<int>(m.fibers.size()))
        fault("a barrier that some threads of the block have left without", where);
    if (++m.waiting < m.alive) return wait_here(self, State::block);
    for (auto& f : m.fibers)
        if (f.where.line() != where.line() || strcmp(f.where.file_name(), where.file_name()))
            fault("threads of a block wait at different barriers", where);
    m.waiting = 0;
    in_order([&](Fiber& f) { if (&f != &self) wake(f); });
}

// A warp operation: `all(lanes)` is called once, by the last lane of `mask` to arrive, and takes
// what every lane brought to what every lane gets.
template <class In, class Out, class All>
Out together(uint32_t mask, const char* what, const In& in, All all, Where where) {
    auto& m = machine;
    Fiber& self = *m.now;
    Out out{};
    self.in = &in, self.out = &out, self.mask = mask, self.what = what, self.where = where;
    if (!(mask >> self.number % 32 & 1)) fault("a lane that its own mask leaves out", where);
    auto lanes = m.warp(self);
    self.state = State::warp;
    for (size_t i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        if (i >= lanes.size()) fault("a mask with lanes that the block does not have", where);
        if (lanes[i]->state != State::warp || lanes[i]->mask != mask) {
            wait_here(self, State::warp);
            return out;
        }
    }
    for (size_t i = 0; i < lanes.size(); i++)
        if (mask >> i & 1 && (lanes[i]->where.line() != where.line() || strcmp(lanes[i]->what, what)))
            fault("lanes of a warp meet in different operations", where);
    all(lanes);
    self.state = State::ready;
    for (size_t i = 0; i < lanes.size(); i++) {
        Fiber& f = *lanes[m.order == FORWARD ? lanes.size() - 1 - i : i];
        if (mask >> f.number % 32 & 1 && &f != &self) wake(f);
    }
    return out;
}

template <class T> const T& in(const std::vector<Fiber*>& lanes, int i) {
    return *static_cast<const T*>(lanes[i]->in);
}
template <class T> T& out(const std::vector<Fiber*>& lanes, int i) {
    return *static_cast<T*>(lanes[i]->out);
}

// `source(lane, brought)` is the lane that a lane reads from; its own where that is none
template <class T> struct Shuffled { T value; int argument; };
template <class T, class Source>
T shuffle(uint32_t mask, T value, int argument, int width, const char* what, Source source, Where where) {
    Shuffled<T> brought{value, argument};
    return together<Shuffled<T>, T>(mask, what, brought, [&](auto& lanes) {
        for (int i = 0; i < static_cast<int>(lanes.size()); i++) {
            if (!(mask >> i & 1)) continue;
            int from = source(i, in<Shuffled<T>>(lanes, i).argument);
            if (from < i / width * width || from >= (i / width + 1) * width) from = i;
            if (!(mask >> from & 1)) fault("a shuffle from a lane that does not take part", where);
            out<T>(lanes, i) = in<Shuffled<T>>(lanes, from).value;
        }
    }, where);
}

inline const Region* shared_region(const void* p, size_t n) {
    auto& m = machine;
    if (m.dynamic.holds(p, n)) return &m.dynamic;
    for (auto& [_, region] : m.statics) if (region.holds(p, n)) return &region;
    return nullptr;
}

inline void* static_shared(const void* token, size_t bytes) {
    auto& m = machine;
    for (auto& [known, region] : m.statics) if (known == token) return region.begin;
    m.statics.emplace_back(token, Region{});
    m.statics.back().second.allocate(bytes);
    size_t total = m.dynamic.bytes;
    for (auto& [_, region] : m.statics) total += region.bytes;
    if (total > SHARED_LIMIT) fault("more shared memory than a block can have");
    return m.statics.back().second.begin;
}

inline void fiber_main() {
    for (;;) {
        machine.entry(machine.argument);
        machine.now->state = State::done;
        for (auto& group : machine.now->groups)
            if (!group.empty()) fault("a thread ended before its cp.async copies did");
        machine.alive--;
        for (auto& f : machine.fibers)
            if (machine.waiting && f.state == State::block)
                fault("a barrier that a thread of the block ended without", f.where);
        if (!_setjmp(machine.now->at)) _longjmp(machine.scheduler, 1);
    }
}

inline void resume(Fiber& fiber) {
    machine.now = &fiber;
    threadIdx = fiber.index;
    if (_setjmp(machine.scheduler)) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    if (!fiber.stack) {
        fiber.stack = static_cast<char*>(mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        mprotect(fiber.stack, sysconf(_SC_PAGESIZE), PROT_NONE);
    }
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack;
    fiber.start.uc_stack.ss_size = STACK;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
    setcontext(&fiber.start);
}

[[noreturn]] inline void deadlock() {
    auto& m = machine;
    for (auto& f : m.fibers)
        if (f.state == State::warp || f.state == State::block) {
            m.now = &f;
            fault(f.state == State::warp ? "a warp operation that lanes of its mask never reach"
                                         : "a barrier that threads of the block never reach", f.where);
        }
    fault("no thread can go on");
}

inline void run_block() {
    auto& m = machine;
    m.dynamic.poison();
    for (auto& [_, region] : m.statics) region.release();
    m.statics.clear();
    m.ready.clear();
    m.waiting = 0, m.alive = m.fibers.size();
    for (auto& f : m.fibers) f.groups.assign(1, {});
    in_order([](Fiber& f) { wake(f); });
    // forward: the last that became ready goes on, so warps run far ahead of each other; reversed:
    // first come, first served, so they keep step
    size_t served = 0;
    while (served < m.ready.size()) {
        int next;
        if (m.order == FORWARD) {
            next = m.ready.back(), m.ready.pop_back();
        } else {
            if (m.order == SHUFFLED)
                std::swap(m.ready[served], m.ready[served + m.random() % (m.ready.size() - served)]);
            next = m.ready[served++];
            if (served > 4096) m.ready.erase(m.ready.begin(), m.ready.begin() + served), served = 0;
        }
        resume(m.fibers[next]);
    }
    m.now = nullptr;
    if (m.alive) deadlock();
}

inline void on_signal(int, siginfo_t* info, void*) {
    auto& m = machine;
    const char* what = "an access to an address that is nobody's";
    if (m.dynamic.guards(info->si_addr)) what = "an access outside the dynamic shared memory";
    for (auto& [_, region] : m.statics)
        if (region.guards(info->si_addr)) what = "an access outside a shared array";
    for (auto& region : m.global)
        if (region.guards(info->si_addr))
            what = region.holds(info->si_addr) ? "a write to an input" : "an access outside a tensor";
    fault(what);
}

// Runs every thread of a grid; null, or what went wrong.
inline const char* launch(dim3 grid, dim3 block, size_t shared, void (*entry)(void*), void* argument) {
    auto& m = machine;
    size_t threads = size_t(block.x) * block.y * block.z;
    if (threads == 0 || threads > 1024) return "a block has 1 to 1024 threads";
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
        return "a grid has at least one block, and at most 65535 along y and z";
    if (shared > SHARED_LIMIT) return "more shared memory than a block can have";
    m.entry = entry, m.argument = argument;
    blockDim = block, gridDim = grid;
    if (m.fibers.size() < threads) m.fibers.reserve(1024);
    while (m.fibers.size() > threads) {
        if (m.fibers.back().stack) munmap(m.fibers.back().stack, STACK);
        m.fibers.pop_back();
    }
    while (m.fibers.size() < threads) m.fibers.emplace_back();
    for (size_t i = 0; i < threads; i++) {
        m.fibers[i].number = i;
        m.fibers[i].index = {unsigned(i % block.x), unsigned(i / block.x % block.y),
                             unsigned(i / block.x / block.y)};
    }
    m.dynamic.release();
    m.dynamic.allocate(shared);

    static std::vector<char> signal_stack(1 << 16);
    stack_t stack{}, old_stack;
    stack.ss_sp = signal_stack.data(), stack.ss_size = signal_stack.size();
    sigaltstack(&stack, &old_stack);
    struct sigaction action{}, old_segv, old_bus;
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &old_segv);
    sigaction(SIGBUS, &action, &old_bus);
    const char* failure = nullptr;
    if (sigsetjmp(m.failed, 1)) {
        failure = m.message;
        for (auto& f : m.fibers) f.started = false;  // their stacks hold what was abandoned
    } else {
        size_t blocks = size_t(grid.x) * grid.y * grid.z;
        std::vector<size_t> numbers(blocks);
        for (size_t i = 0; i < blocks; i++) numbers[i] = m.order == REVERSED ? blocks - 1 - i : i;
        if (m.order == SHUFFLED)
            for (size_t i = blocks; i > 1; i--) std::swap(numbers[i - 1], numbers[m.random() % i]);
        for (size_t n : numbers) {
            blockIdx = {unsigned(n % grid.x), unsigned(n / grid.x % grid.y),
                        unsigned(n / grid.x / grid.y)};
            run_block();
        }
    }
    m.now = nullptr;
    sigaction(SIGSEGV, &old_segv, nullptr);
    sigaction(SIGBUS, &old_bus, nullptr);
    sigaltstack(&old_stack, nullptr);
    return failure;
}

}  // namespace emulator

// what the tests call
extern "C" {
inline __attribute__((used)) void emulator_order(int order, uint64_t seed) {
    emulator::machine.order = static_cast<emulator::Order>(order);
    emulator::machine.seed = seed;
}
inline __attribute__((used)) uint64_t emulator_conflicts() {
    return std::exchange(emulator::machine.conflicts, 0);
}
inline __attribute__((used)) void* emulator_allocate(size_t bytes) {
    emulator::machine.global.emplace_back();
    emulator::machine.global.back().allocate(std::max<size_t>(bytes, 1));
    // a buffer whose length is no multiple of 16 begins late, so that its end is still exact
    auto& region = emulator::machine.global.back();
    return region.begin + (region.bytes - bytes) / 4 * 4;
}
inline __attribute__((used)) void emulator_protect(void* p, int writable) {
    for (auto& region : emulator::machine.global)
        if (region.guards(p)) region.protect(writable);
}
inline __attribute__((used)) void emulator_free(void* p) {
    auto& all = emulator::machine.global;
    for (size_t i = 0; i < all.size(); i++)
        if (all[i].guards(p)) { all[i].release(); all.erase(all.begin() + i); return; }
}
}

// CUDA's functions -------------------------------------------------------------------------------

using EmulatedWhere = emulator::Where;
#define EMULATED_WHERE EmulatedWhere where = EmulatedWhere::current()

inline void __syncthreads(EMULATED_WHERE) { emulator::barrier(where); }
inline void __syncwarp(uint32_t mask = ~0u, EMULATED_WHERE) {
    emulator::together<char, char>(mask, "__syncwarp", 0, [](auto&) {}, where);
}
template <class T> T __shfl_sync(uint32_t mask, T v, int from, int width = 32, EMULATED_WHERE) {
    auto source = [=](int lane, int s) { return lane / width * width + s % width; };
    return emulator::shuffle(mask, v, from, width, "__shfl_sync", source, where);
}
template <class T> T __shfl_xor_sync(uint32_t mask, T v, int by, int width = 32, EMULATED_WHERE) {
    auto source = [](int lane, int s) { return lane ^ s; };
    return emulator::shuffle(mask, v, by, width, "__shfl_xor_sync", source, where);
}
template <class T> T __shfl_up_sync(uint32_t mask, T v, unsigned by, int width = 32, EMULATED_WHERE) {
    auto source = [](int lane, int s) { return lane - s; };
    return emulator::shuffle(mask, v, int(by), width, "__shfl_up_sync", source, where);
}
template <class T> T __shfl_down_sync(uint32_t mask, T v, unsigned by, int width = 32, EMULATED_WHERE) {
    auto source = [](int lane, int s) { return lane + s; };
    return emulator::shuffle(mask, v, int(by), width, "__shfl_down_sync", source, where);
}
inline uint32_t __ballot_sync(uint32_t mask, bool vote, EMULATED_WHERE) {
    return emulator::together<bool, uint32_t>(mask, "__ballot_sync", vote, [&](auto& lanes) {
        uint32_t votes = 0;
        for (int i = 0; i < 32; i++)
            if (mask >> i & 1) votes |= uint32_t(emulator::in<bool>(lanes, i)) << i;
        for (int i = 0; i < 32; i++)
            if (mask >> i & 1) emulator::out<uint32_t>(lanes, i) = votes;
    }, where);
}
inline bool __any_sync(uint32_t mask, bool vote, EMULATED_WHERE) {
    return __ballot_sync(mask, vote, where) != 0;
}
inline bool __all_sync(uint32_t mask, bool vote, EMULATED_WHERE) {
    return __ballot_sync(mask, vote, where) == mask;
}

template <class T> T atomicAdd(T* p, T v) { T old = *p; *p = old + v; return old; }
template <class T> T atomicMax(T* p, T v) { T old = *p; *p = std::max(old, v); return old; }
template <class T> T atomicMin(T* p, T v) { T old = *p; *p = std::min(old, v); return old; }
template <class T> T atomicExch(T* p, T v) { T old = *p; *p = v; return old; }
template <class T> T atomicCAS(T* p, T is, T v) { T old = *p; if (old == is) *p = v; return old; }
inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T> T __ldg(const T* p) { return *p; }

using std::max;
using std::min;
inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
inline int __float_as_int(float x) { return int(__float_as_uint(x)); }
inline float __int_as_float(int i) { return __uint_as_float(unsigned(i)); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __frcp_rn(float x) { return 1 / x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return uint64_t(x) * y >> 32; }

struct __nv_bfloat16 { uint16_t bits; };
struct __half { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    unsigned u = __float_as_uint(x);
    if (x != x) return {uint16_t(0x7FFF)};
    return {uint16_t((u + 0x7FFF + (u >> 16 & 1)) >> 16)};
}
inline float __half2float(__half x) { _Float16 h; memcpy(&h, &x, 2); return float(h); }
inline __half __float2half_rn(float x) { _Float16 h = x; __half r; memcpy(&r, &h, 2); return r; }
