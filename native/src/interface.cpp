// The C interface: arguments are checked, then handed to the kernels; no exception leaves.

#include <cmath>
#include <exception>
#include <initializer_list>
#include <new>

#include "../include/augserve.h"
#include "norm.hpp"

#if defined(_WIN32)
#define AUGSERVE_EXPORT extern "C" __declspec(dllexport)
#else
#define AUGSERVE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

enum Code { OK = 0, MISSING = -1, SIZE = -2, KIND = -3, EXPONENT = -4, SOLVER = -5, GROUPS = -6, MEMORY = -7, OTHER = -8 };

bool empty(std::int64_t rows, std::int64_t channels, std::int64_t positions) {
    return rows == 0 || channels == 0 || positions == 0;
}

bool sizes_ok(std::int64_t rows, std::int64_t channels, std::int64_t positions) {
    constexpr std::int64_t most = std::int64_t(1) << 60;
    for (const std::int64_t size : {rows, channels, positions})
        if (size < 0 || size > most) return false;
    if (empty(rows, channels, positions)) return true;
    return rows <= most / channels && rows * channels <= most / positions;
}

bool solver_ok(double rtol, std::int64_t max_steps) { return rtol > 0 && max_steps >= 1 && max_steps <= 1000000; }

bool exponent_ok(std::int64_t kind, double exponent, const float *exponents) {
    if (kind == AUGSERVE_AUG) return exponents || exponent >= 1;
    return exponent > 0 && std::isfinite(exponent);
}

int check(const augserve_forward &a) {
    if (!sizes_ok(a.rows, a.channels, a.positions)) return SIZE;
    if (a.kind < AUGSERVE_AUG || a.kind > AUGSERVE_ROBUST_RANGE) return KIND;
    if (a.dtype < AUGSERVE_FLOAT32 || a.dtype > AUGSERVE_BFLOAT16) return KIND;
    if (!exponent_ok(a.kind, a.exponent, a.exponents)) return EXPONENT;
    if (a.kind == AUGSERVE_AUG && !solver_ok(a.rtol, a.max_steps)) return SOLVER;
    if (!empty(a.rows, a.channels, a.positions) && (!a.x || !a.y)) return MISSING;
    if (a.order) {
        if (!a.offsets || a.groups < 1 || a.offsets[0] != 0 || a.offsets[a.groups] != a.rows) return GROUPS;
        for (std::int64_t g = 0; g < a.groups; g++)
            if (a.offsets[g + 1] < a.offsets[g]) return GROUPS;
        for (std::int64_t i = 0; i < a.rows; i++)
            if (a.order[i] < 0 || a.order[i] >= a.rows) return GROUPS;
    }
    if (a.tracked_weight)
        for (std::int64_t g = 0; g < (a.order ? a.groups : 1); g++) {
            if (!(a.tracked_weight[g] >= 0 && a.tracked_weight[g] <= 1)) return GROUPS;
            if (a.tracked_weight[g] != 0 && a.channels > 0 && (!a.running_center || !a.running_spread)) return MISSING;
        }
    return OK;
}

int check(const augserve_backward &a) {
    if (!sizes_ok(a.rows, a.channels, a.positions)) return SIZE;
    if (a.kind < AUGSERVE_AUG || a.kind > AUGSERVE_ROBUST_RANGE) return KIND;
    if (a.dtype < AUGSERVE_FLOAT32 || a.dtype > AUGSERVE_BFLOAT16) return KIND;
    if (!exponent_ok(a.kind, a.exponent, a.exponents)) return EXPONENT;
    // The median and the midrange have gradients at a few values only: not here.
    if (a.kind == AUGSERVE_AUG && !a.exponents && !(a.exponent > 1 && a.exponent <= 1e9)) return EXPONENT;
    if (!empty(a.rows, a.channels, a.positions) && (!a.x || !a.dy || !a.dx)) return MISSING;
    if (a.channels > 0 && (!a.center || !a.spread || !a.first || !a.second)) return MISSING;
    return OK;
}

int check(const augserve_median &a) {
    if (!sizes_ok(1, a.rows, a.count)) return SIZE;
    if (!a.exponents && !(a.exponent >= 1)) return EXPONENT;
    if (!solver_ok(a.rtol, a.max_steps)) return SOLVER;
    if (a.rows == 0) return OK;
    if (a.count == 0) return SIZE;
    if (!a.x || !a.value || !a.lower || !a.upper || !a.mean || !a.var || !a.steps || !a.status) return MISSING;
    return OK;
}

template <class Arguments>
int run(const Arguments *arguments, const augserve_executor *executor,
        void (*kernel)(const Arguments &, const augserve_executor *)) {
    if (!arguments || (executor && !executor->run)) return MISSING;
    const int code = check(*arguments);
    if (code != OK) return code;
    try {
        kernel(*arguments, executor);
        return OK;
    } catch (const std::bad_alloc &) {
        return MEMORY;
    } catch (const std::exception &) {
        return OTHER;
    }
}

}  // namespace

AUGSERVE_EXPORT int64_t augserve_abi(void) { return AUGSERVE_ABI; }

AUGSERVE_EXPORT const char *augserve_message(int code) {
    switch (code) {
        case OK: return "no error";
        case MISSING: return "a pointer that is needed is NULL";
        case SIZE: return "a size is negative or too large, or there is no value to take the median of";
        case KIND: return "an unknown kind of norm or type of data";
        case EXPONENT: return "the exponent is out of range: phi in [1, inf], for gradients in (1, 1e9]; p positive";
        case SOLVER: return "rtol must be positive and max_steps at least 1";
        case GROUPS: return "the groups do not cover the rows, a tracked weight is not in [0, 1], or averages are to move toward several groups";
        case MEMORY: return "out of memory";
        default: return "an error of the system, such as no thread to be had";
    }
}

AUGSERVE_EXPORT const char *augserve_instruction_set(void) {
#if defined(AUGSERVE_CLONES) && defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12
    if (__builtin_cpu_supports("x86-64-v4")) return "avx512";
    if (__builtin_cpu_supports("x86-64-v3")) return "avx2";
#elif defined(AUGSERVE_CLONES) && defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f")) return "avx512";
    if (__builtin_cpu_supports("avx2")) return "avx2";
#endif
    return "baseline";
}

AUGSERVE_EXPORT int augserve_run_forward(const augserve_forward *arguments, const augserve_executor *executor) {
    return run(arguments, executor, augserve::forward);
}

AUGSERVE_EXPORT int augserve_run_backward(const augserve_backward *arguments, const augserve_executor *executor) {
    return run(arguments, executor, augserve::backward);
}

AUGSERVE_EXPORT int augserve_run_median(const augserve_median *arguments, const augserve_executor *executor) {
    return run(arguments, executor, augserve::medians);
}
