// Medians of the distributions that the solver is specified on: near the oracle's, inside their certificates, within
// the steps that are allowed, and moving with the data. Argument: the largest number of values, of at most 131072.

#include <cstdlib>

#include "check.hpp"
#include "draw.hpp"
#include "oracle.hpp"

namespace {

using check::expect;
using draw::Random;

constexpr double EPS = 1.1920928955078125e-7;  // of float
constexpr double LARGEST_ERROR = 2e-4;         // in standard deviations, from 32 values on
constexpr std::int64_t MOST_STEPS = 32;

struct Distribution {
    const char *name;
    double (*draw)(Random &);
};
const Distribution DISTRIBUTIONS[] = {
    {"normal", [](Random &r) { return r.normal(); }},
    {"relu", [](Random &r) { return std::max(r.normal(), 0.0); }},
    {"relu - 1", [](Random &r) { return std::max(r.normal() - 1, 0.0); }},
    {"student", [](Random &r) { return r.normal() / std::sqrt(-std::log(r.uniform())); }},
    {"outlier", [](Random &r) { return r.normal(); }},  // of which the first becomes 1e4
    {"clusters", [](Random &r) { return 0.1 * r.normal() + (r.uniform() < 0.3 ? 10 : 0); }},
    {"lognormal", [](Random &r) { return std::exp(1.5 * r.normal()); }},
    {"zeros", [](Random &r) { return r.uniform() < 0.9 ? 0.0 : r.normal(); }},
    {"constant", [](Random &) { return 0.7; }},
};

std::vector<float> values_of(const Distribution &distribution, std::int64_t count) {
    Random random{std::uint32_t(count)};
    std::vector<float> x = draw::some<float>(count, [&] { return distribution.draw(random); });
    if (distribution.name == std::string("outlier")) x[0] = 1e4f;
    return x;
}

struct Result {
    std::vector<float> value, lower, upper, mean, var;
    std::vector<std::int64_t> steps, status;
    explicit Result(std::size_t n) : value(n), lower(n), upper(n), mean(n), var(n), steps(n), status(n) {}
};

Result run(const std::vector<float> &x, std::int64_t rows, double phi, double rtol, std::int64_t threads = 1,
           const float *exponents = nullptr, const float *start = nullptr) {
    Result r(static_cast<std::size_t>(rows));
    augserve_median m{};
    m.threads = threads, m.rows = rows, m.count = std::int64_t(x.size()) / rows, m.x = x.data();
    m.exponent = phi, m.exponents = exponents, m.start = start, m.rtol = rtol, m.max_steps = MOST_STEPS;
    m.value = r.value.data(), m.lower = r.lower.data(), m.upper = r.upper.data();
    m.mean = r.mean.data(), m.var = r.var.data(), m.steps = r.steps.data(), m.status = r.status.data();
    const int code = augserve_run_median(&m, nullptr);
    expect(code == 0, "median returned %d", code);
    return r;
}

// What of the error is float's: the sums', over their slope for phi < 2 (see forward.cpp), and the values' own.
double rounding(const oracle::Statistics &s, double phi) {
    const double sums = phi == 1 || phi == 2 || std::isinf(phi) ? 0 : phi < 2 ? s.std / (phi - 1) : s.high - s.low;
    return 8 * EPS * sums + 4 * EPS * std::max(std::fabs(s.low), std::fabs(s.high));
}

void check_moves(const std::vector<float> &x, const oracle::Statistics &s, double phi, double rtol, double value) {
    const auto moved = [&](double a, double b) {
        std::vector<float> y = x;
        for (float &each : y) each = float(a * each + b);
        return double(run(y, 1, phi, rtol).value[0]);
    };
    const double tolerance = 2 * rtol * s.std + 2 * rounding(s, phi);
    expect(moved(4, 0) == 4 * value, "of 4 x: %.9g, of x: %.9g", moved(4, 0), value);
    expect(std::fabs(moved(-1, 0) + value) <= tolerance, "of -x: %.9g, of x: %.9g", moved(-1, 0), value);
    expect(std::fabs(moved(3, 0) - 3 * value) <= 3 * tolerance, "of 3 x: %.9g, of x: %.9g", moved(3, 0), value);
    expect(std::fabs(moved(1, 5) - 5 - value) <= tolerance + 40 * EPS, "of x + 5: %.9g, of x: %.9g", moved(1, 5),
           value);
    std::vector<float> reversed(x.rbegin(), x.rend());
    expect(std::fabs(run(reversed, 1, phi, rtol).value[0] - value) <= tolerance, "of x in reverse: not %.9g", value);
}

void check_certificate(const Result &r, const oracle::Statistics &s, double phi, double rtol, std::size_t count) {
    const double value = r.value[0], lower = r.lower[0], upper = r.upper[0], error = value - s.center;
    const double slack = rounding(s, phi);
    expect(value >= s.low && value <= s.high, "%.9g outside [%.9g, %.9g]", value, s.low, s.high);
    expect(lower <= value && value <= upper, "%.9g outside its bracket [%.9g, %.9g]", value, lower, upper);
    expect(s.center >= lower - slack && s.center <= upper + slack, "bracket [%.9g, %.9g] without %.9g: off %.2g std",
           lower,
           upper, s.center, std::max(lower - s.center, s.center - upper) / s.std);
    if (r.status[0] == 0)
        expect(upper - lower <= rtol * s.std * 1.001 + 2 * slack, "width %.3g std", (upper - lower) / s.std);
    expect(r.status[0] == 0 || (rtol < 1e-5 && r.status[0] == 1), "status %d after %d steps, width %.3g std",
           int(r.status[0]), int(r.steps[0]), (upper - lower) / s.std);
    expect(r.steps[0] >= 0 && r.steps[0] <= MOST_STEPS, "%d steps", int(r.steps[0]));
    if (count >= 32) expect(std::fabs(error) <= LARGEST_ERROR * s.std, "%.9g, not %.9g: off %.2g std", value, s.center,
                            error / s.std);
    expect(std::fabs(r.mean[0] - s.mean) <= slack, "mean %.9g, expected %.9g", r.mean[0], s.mean);
    expect(std::fabs(r.var[0] - s.std * s.std) <= 32 * EPS * s.std * (s.std + s.high - s.low),
           "variance %.9g, expected %.9g",
           r.var[0], s.std * s.std);
}

void check_distribution(const Distribution &distribution, std::int64_t count, double phi) {
    const std::vector<float> x = values_of(distribution, count);
    const oracle::Statistics s = oracle::statistics(oracle::Values(x.begin(), x.end()), AUGSERVE_AUG, phi);
    for (const double rtol : {1e-4, 1e-6}) {
        check::where() = check::text("%s, %d values, phi %g, rtol %g", distribution.name, int(count), phi, rtol);
        const Result r = run(x, 1, phi, rtol);
        check_certificate(r, s, phi, rtol, std::size_t(count));
        if (rtol > 1e-5 && count <= 16384) check_moves(x, s, phi, rtol, r.value[0]);
        for (const float start : {float(s.center), float(s.low), 1e30f, std::nanf("")}) {
            const Result warm = run(x, 1, phi, rtol, 1, nullptr, &start);
            check_certificate(warm, s, phi, rtol, std::size_t(count));
        }
    }
}

// The same values as a channel of a norm, in one row or in many: there a copy leaves the zeros out of the passes.
void check_channel(const Distribution &distribution, std::int64_t count, double phi) {
    const std::vector<float> x = values_of(distribution, count);
    const oracle::Statistics s = oracle::statistics(oracle::Values(x.begin(), x.end()), AUGSERVE_AUG, phi);
    for (const std::int64_t rows : {std::int64_t(1), count}) {
        check::where() = check::text("%s, a channel of %d values in %d rows, phi %g", distribution.name, int(count),
                                     int(rows), phi);
        std::vector<float> y(x.size());
        float center = 0;
        std::int64_t steps = 0;
        augserve_forward a{};
        a.kind = AUGSERVE_AUG, a.threads = 1, a.rows = rows, a.channels = 1, a.positions = count / rows;
        a.x_layout = a.y_layout = {a.positions, count, 1};
        a.x = x.data(), a.y = y.data(), a.exponent = phi, a.eps = 1e-5, a.rtol = 1e-5, a.max_steps = MOST_STEPS;
        a.groups = 1, a.center = &center, a.steps = &steps;
        const int code = augserve_run_forward(&a, nullptr);
        expect(code == 0, "forward returned %d", code);
        const double error = center - s.center;
        expect(std::fabs(error) <= (count >= 32 ? LARGEST_ERROR : 1e-3) * s.std + rounding(s, phi),
               "%.9g, not %.9g: off %.2g std", center, s.center, error / s.std);
        expect(steps <= MOST_STEPS, "%d steps", int(steps));
    }
}

// Rows with exponents of their own, one of them not finite, on several threads: each as it is alone, to the bit.
void check_rows(std::int64_t count) {
    check::where() = check::text("rows of %d values", int(count));
    const std::vector<float> exponents = {1, 1.1f, 1.5f, 2, 3, float(HUGE_VAL), std::nanf(""), 0.5f, 1.5f};
    const auto rows = std::int64_t(exponents.size());
    Random random(7);
    std::vector<float> x = draw::some<float>(rows * count, [&] { return random.normal(); });
    x.back() = float(HUGE_VAL);
    const Result all = run(x, rows, 1.5, 1e-4, 4, exponents.data());
    for (std::size_t k = 0; k < exponents.size(); k++) {
        const auto from = x.begin() + std::ptrdiff_t(k) * std::ptrdiff_t(count);
        const Result one = run(std::vector<float>(from, from + std::ptrdiff_t(count)), 1, 1.5, 1e-4, 1, &exponents[k]);
        using storage::same;
        expect(same(all.value[k], one.value[0]) && same(all.lower[k], one.lower[0]) &&
               same(all.upper[k], one.upper[0]) &&
                   same(all.mean[k], one.mean[0]) && same(all.var[k], one.var[0]) && all.steps[k] == one.steps[0] &&
                   all.status[k] == one.status[0],
               "row %d: %.9g among others, %.9g alone", int(k), all.value[k], one.value[0]);
        const bool finite = k != 6 && k != 7 && k != 8;
        expect(finite ? all.status[k] == 0 : all.status[k] == 2 && std::isnan(all.value[k]), "row %d: status %d",
               int(k),
               int(all.status[k]));
    }
}

}  // namespace

int main(int count, char **arguments) {
    const std::int64_t most = count > 1 ? std::atoi(arguments[1]) : 131072;
    for (const Distribution &distribution : DISTRIBUTIONS)
        for (const double phi : {1.0, 1.05, 1.1, 1.25, 1.5, 1.75, 2.0, 3.0, 8.0, double(HUGE_VAL)})
            for (const std::int64_t m : {1, 2, 4, 32, 512, 16384, 131072}) {
                const bool largest = m == 131072, chosen = phi == 1 || phi == 1.5;  // the oracle takes its time
                if (m > most || (largest && !chosen)) continue;
                check_distribution(distribution, m, phi);
                check_channel(distribution, m, phi);
            }
    for (const std::int64_t m : {1, 2, 3, 1000, 9000}) check_rows(m);
    return check::result();
}
