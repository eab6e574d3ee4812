// See parallel.hpp. GOMP_parallel is the entry that every OpenMP runtime on ELF systems offers (GNU's own, and LLVM's
// and Intel's for compatibility): it is looked up at run time, since linking to one would start a second pool.

#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#define AUGSERVE_DLSYM(name) dlsym(RTLD_DEFAULT, name)
#else
#define AUGSERVE_DLSYM(name) nullptr
#endif

namespace augserve {
namespace {

constexpr std::size_t VALUES_PER_THREAD = 16384;  // about what starting a thread's work costs
constexpr std::size_t ALIGNMENT = 64;

struct OpenMP {
    using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
    using Number = int (*)();
    Parallel parallel = nullptr;
    Number thread = nullptr, threads = nullptr, nested = nullptr;

    bool found() const { return parallel && thread && threads && nested; }
};

OpenMP find_openmp() {
    OpenMP found;
    found.parallel = reinterpret_cast<OpenMP::Parallel>(AUGSERVE_DLSYM("GOMP_parallel"));
    found.thread = reinterpret_cast<OpenMP::Number>(AUGSERVE_DLSYM("omp_get_thread_num"));
    found.threads = reinterpret_cast<OpenMP::Number>(AUGSERVE_DLSYM("omp_get_num_threads"));
    found.nested = reinterpret_cast<OpenMP::Number>(AUGSERVE_DLSYM("omp_in_parallel"));
    return found;
}

OpenMP openmp() {
    static const OpenMP found = find_openmp();
    return found.found() ? found : find_openmp();  // torch may have come later
}

struct Share {
    void (*body)(void *, std::size_t);
    void *argument;
    std::size_t tasks;
    const OpenMP *openmp;
    std::atomic<bool> failed{false};

    void run(std::size_t thread, std::size_t threads) {
        for (std::size_t task = thread; task < tasks; task += threads) one(this, task);
    }

    // No exception may leave a thread, nor pass through a caller's executor: all that is thrown is bad_alloc.
    static void one(void *share, std::size_t task) {
        Share &self = *static_cast<Share *>(share);
        try {
            self.body(self.argument, task);
        } catch (...) {
            self.failed = true;
        }
    }
};

void openmp_entry(void *data) {
    Share &share = *static_cast<Share *>(data);
    share.run(std::size_t(share.openmp->thread()), std::size_t(share.openmp->threads()));
}

void run_share(Share &share, const augserve_executor *executor, std::size_t threads) {
    if (threads <= 1) return share.run(0, 1);
    if (executor) return executor->run(executor->context, Share::one, &share, share.tasks);
    const OpenMP runtime = openmp();
    if (runtime.found()) {
        if (runtime.nested()) return share.run(0, 1);
        share.openmp = &runtime;
        return runtime.parallel(openmp_entry, &share, unsigned(threads), 0);
    }
    std::vector<std::thread> others;
    others.reserve(threads);
    std::size_t next = 1;
    try {
        for (; next < threads; next++) others.emplace_back([&share, next, threads] { share.run(next, threads); });
    } catch (const std::system_error &) {  // no more threads to be had: their shares are this one's
    }
    share.run(0, threads);
    for (; next < threads; next++) share.run(next, threads);
    for (std::thread &other : others) other.join();
}

}  // namespace

void run_tasks(const augserve_executor *executor, std::size_t threads, std::size_t tasks,
               void (*body)(void *argument, std::size_t task), void *argument) {
    threads = std::min(threads, tasks);
    Share share{body, argument, tasks, nullptr};
    run_share(share, executor, threads);
    if (share.failed) throw std::bad_alloc();
}

std::size_t useful_threads(std::int64_t asked, std::size_t values) {
    return std::clamp<std::size_t>(values / VALUES_PER_THREAD, 1, std::size_t(std::max<std::int64_t>(asked, 1)));
}

float *scratch(std::size_t floats) {
    struct Free {
        void operator()(float *memory) const { ::operator delete[](memory, std::align_val_t(ALIGNMENT)); }
    };
    thread_local std::unique_ptr<float[], Free> memory;
    thread_local std::size_t size = 0;
    if (floats > size) {
        memory.reset();
        size = 0;
        memory.reset(static_cast<float *>(::operator new[](floats * sizeof(float), std::align_val_t(ALIGNMENT))));
        size = floats;
    }
    return memory.get();
}

}  // namespace augserve
