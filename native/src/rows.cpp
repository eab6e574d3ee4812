// The medians of the rows of a matrix, with their certificates.

#include <cmath>

#include "median.hpp"
#include "norm.hpp"
#include "parallel.hpp"

namespace augserve {

void medians(const augserve_median &a, const augserve_executor *executor) {
    const std::size_t rows = std::size_t(a.rows), count = std::size_t(a.count);
    const Plan plan(1, count, nullptr);
    const View x{const_cast<float *>(a.x), AUGSERVE_FLOAT32, {0, a.count, 1}};
    const std::size_t threads = useful_threads(a.threads, rows * count);
    const auto one = [&](std::size_t row) {
        float *memory = scratch(BLOCK);
        Values values{&plan, nullptr, &x, row, memory, 1.0f};
        Moments found = moments(values);
        const double nan = std::nan(""), phi = a.exponents ? double(a.exponents[row]) : a.exponent;
        Median mu{nan, nan, nan, 0, NOT_FINITE};
        double unit = 1.0;
        if (found.finite && phi >= 1) {
            const float scale = safe_scale(found.low, found.high);
            if (scale != 1.0f) {
                values.multiply(scale);
                found = moments(values);
                unit = 1.0 / double(scale);
            }
            mu = median(values, found, {phi, a.rtol, a.max_steps}, a.start ? a.start[row] / unit : nan);
        } else {
            found.mean = found.var = nan;
        }
        a.value[row] = float(mu.value * unit);
        a.lower[row] = float(mu.lower * unit);
        a.upper[row] = float(mu.upper * unit);
        a.mean[row] = float(found.mean * unit);
        a.var[row] = float(found.var * unit * unit);
        a.steps[row] = mu.steps;
        a.status[row] = mu.status;
    };
    auto body = [&](std::size_t task) {
        for (std::size_t row = rows * task / threads; row < rows * (task + 1) / threads; row++) one(row);
    };
    parallel(executor, threads, threads, body);
}

}  // namespace augserve
