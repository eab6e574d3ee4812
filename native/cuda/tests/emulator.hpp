// CUDA's language as far as the kernels use it, on the processor: src/portable.cuh takes it with AUGSERVE_EMULATED.
//
// The threads of a block are fibers, run in turn from barrier to barrier; blocks run one after the other. A barrier
// that not all threads reach, and a shuffle of half a warp, end the program with a message; memory of a block begins
// as NaN.
#pragma once

// Fibers begin by ucontext and change places by longjmp, which unlike swapcontext asks nothing of the system. (Compile
// with -U_FORTIFY_SOURCE, whose longjmp stays on one stack.)

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(...)
#define AUGSERVE_ALONE
#define AUGSERVE_UNROLL
#define AUGSERVE_UNROLL_4
#define AUGSERVE_DYNAMIC_SHARED(name) float *name = ::augserve::cuda::emulator::dynamic_shared()

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace augserve::cuda {

using Stream = void *;

namespace emulator {

constexpr unsigned WARP = 32, MOST_EXCHANGED = 160;
constexpr std::size_t STACK = 64 * 1024, MOST_SHARED = 136 * 1024;

enum State { READY, AT_BARRIER, AT_WARP_BARRIER, DONE };

struct Fiber {
    ucontext_t begin;
    jmp_buf here;
    bool begun;
    State state;
    std::unique_ptr<char[]> stack;
};

struct Machine {
    dim3 thread{0}, block{0};
    std::vector<Fiber> fibers;
    jmp_buf scheduler;
    std::function<void()> kernel;
    alignas(16) float shared[MOST_SHARED / sizeof(float)];
    unsigned char exchanged[1024][MOST_EXCHANGED];
    bool backwards = false;  // the last thread and the last block go first
    std::mutex mutex;  // of a launch
};

inline Machine &machine() {
    static Machine one;
    return one;
}

inline float *dynamic_shared() { return machine().shared; }

[[noreturn]] inline void fail(const char *what) {
    std::fprintf(stderr, "emulator: %s\n", what);
    std::abort();
}

inline void wait(State state) {
    Machine &m = machine();
    Fiber &self = m.fibers[m.thread.x];
    self.state = state;
    if (_setjmp(self.here) == 0) _longjmp(m.scheduler, 1);
}

inline void begin_thread() {
    Machine &m = machine();
    m.kernel();
    m.fibers[m.thread.x].state = DONE;
    _longjmp(m.scheduler, 1);
}

// Until the thread waits or is done.
inline void go_on(Machine &m, Fiber &fiber) {
    if (_setjmp(m.scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.here, 1);
    fiber.begun = true;
    setcontext(&fiber.begin);
}

// Lets the warps go on that are together at a barrier of theirs; then, if none is, the block.
inline bool release(std::vector<Fiber> &fibers) {
    bool any = false;
    for (std::size_t warp = 0; warp < fibers.size(); warp += WARP) {
        unsigned waiting = 0;
        for (unsigned lane = 0; lane < WARP; lane++) waiting += fibers[warp + lane].state == AT_WARP_BARRIER;
        if (waiting == 0) continue;
        if (waiting < WARP) fail("a part of a warp is at a barrier of the warp");
        for (unsigned lane = 0; lane < WARP; lane++) fibers[warp + lane].state = READY;
        any = true;
    }
    if (any) return true;
    std::size_t waiting = 0;
    for (Fiber &fiber : fibers) waiting += fiber.state == AT_BARRIER;
    if (waiting == 0) return false;
    if (waiting < fibers.size()) fail("a part of a block is at a barrier of the block");
    for (Fiber &fiber : fibers) fiber.state = READY;
    return true;
}

inline void run_block(Machine &m, unsigned threads) {
    for (float &value : m.shared) value = NAN;
    if (m.fibers.size() != threads) m.fibers = std::vector<Fiber>(threads);
    for (Fiber &fiber : m.fibers) {
        if (!fiber.stack) fiber.stack.reset(new char[STACK]);
        getcontext(&fiber.begin);
        fiber.begin.uc_stack.ss_sp = fiber.stack.get();
        fiber.begin.uc_stack.ss_size = STACK;
        fiber.begin.uc_link = nullptr;
        makecontext(&fiber.begin, begin_thread, 0);
        fiber.begun = false;
        fiber.state = READY;
    }
    do {
        for (unsigned i = 0; i < threads; i++) {
            const unsigned k = m.backwards ? threads - 1 - i : i;
            if (m.fibers[k].state != READY) continue;
            m.thread.x = k;
            go_on(m, m.fibers[k]);
        }
    } while (release(m.fibers));
}

}  // namespace emulator

#define threadIdx (::augserve::cuda::emulator::machine().thread)
#define blockIdx (::augserve::cuda::emulator::machine().block)

inline void __syncthreads() { emulator::wait(emulator::AT_BARRIER); }
inline void __syncwarp() { emulator::wait(emulator::AT_WARP_BARRIER); }

template <class T>
T shuffle_from(const T &value, unsigned thread) {
    static_assert(sizeof(T) <= emulator::MOST_EXCHANGED && sizeof(T) % 4 == 0, "whole words");
    emulator::Machine &m = emulator::machine();
    std::memcpy(m.exchanged[threadIdx.x], &value, sizeof value);
    __syncwarp();
    T other;
    std::memcpy(&other, m.exchanged[thread], sizeof other);
    __syncwarp();
    return other;
}

template <class T>
T shuffle_xor(const T &value, unsigned bits) {
    return shuffle_from(value, threadIdx.x ^ bits);
}

template <class T>
T shuffle_first(const T &value) {
    return shuffle_from(value, threadIdx.x / emulator::WARP * emulator::WARP);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, std::size_t shared, Stream,
            const Arguments &...arguments) {
    emulator::Machine &m = emulator::machine();
    const std::lock_guard<std::mutex> lock(m.mutex);
    if (threads % emulator::WARP || threads > 1024 || shared > emulator::MOST_SHARED || grid.y > 65535 || !grid.x ||
        !grid.y)
        emulator::fail("a launch out of bounds");
    m.kernel = [=] { kernel(Parameters(arguments)...); };
    const std::size_t blocks = std::size_t(grid.x) * grid.y;
    for (std::size_t i = 0; i < blocks; i++) {
        const std::size_t k = m.backwards ? blocks - 1 - i : i;
        m.block = dim3(unsigned(k % grid.x), unsigned(k / grid.x));
        emulator::run_block(m, threads);
    }
}

// --- numbers ---------------------------------------------------------------------------------------------------

struct Half {
    std::uint16_t bits;
};

inline float to_float(float value) { return value; }
inline void round_to(float value, float &result) { result = value; }

inline float to_float(Half half) {
    const unsigned exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
    float size = exponent ? std::ldexp(float(1024 + fraction), int(exponent) - 25) : std::ldexp(float(fraction), -24);
    if (exponent == 31) size = fraction ? NAN : INFINITY;
    return half.bits & 0x8000 ? -size : size;
}

inline void round_to(float value, Half &result) {
    const float size = std::fabs(value);
    const unsigned sign = std::signbit(value) ? 0x8000 : 0;
    unsigned bits = 0x7e00;  // NaN
    if (size >= 65520.0f) {
        bits = 0x7c00;
    } else if (size >= 6.103515625e-05f) {
        int exponent;
        const float part = std::frexp(size, &exponent);  // in [1/2, 1)
        bits = unsigned(std::nearbyint(part * 2048)) - 1024 + (unsigned(exponent + 14) << 10);
    } else if (size < 1) {
        bits = unsigned(std::nearbyint(std::ldexp(size, 24)));
    }
    result.bits = std::uint16_t(sign | bits);
}

inline float reciprocal_root(float value) { return 1 / std::sqrt(value); }

}  // namespace augserve::cuda
