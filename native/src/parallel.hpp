// Work spread over threads: those of the caller's executor, of the OpenMP runtime that the process has loaded (the
// one of torch, so that there is one pool and its number of threads holds), or of our own where there is neither.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../include/augserve.h"

namespace augserve {

// Calls body(argument, i) for i < tasks, on at most `threads` threads; each task is run by one thread.
void run_tasks(const augserve_executor *executor, std::size_t threads, std::size_t tasks,
               void (*body)(void *argument, std::size_t task), void *argument);

template <class Body>
void parallel(const augserve_executor *executor, std::size_t threads, std::size_t tasks, Body &body) {
    run_tasks(
        executor, threads, tasks,
        [](void *argument, std::size_t task) { (*static_cast<Body *>(argument))(task); }, &body);
}

// How many threads are worth their start for so many values.
std::size_t useful_threads(std::int64_t asked, std::size_t values);

// Memory of the calling thread for at least `floats`, aligned for vectors; kept for the next call.
float *scratch(std::size_t floats);

}  // namespace augserve
