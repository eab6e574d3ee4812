// Random forward passes against the definitions, and against themselves: with other threads, a group alone, a channel
// alone, all to the bit. Arguments: first seed, number of cases.
//
// Statistics are compared with the oracle's, y with what the reported statistics give, so that each has the narrowest
// tolerance (see `center_tolerance` and `check_values`).

#include <cstdlib>

#include "check.hpp"
#include "forward_case.hpp"
#include "oracle.hpp"

namespace {

using namespace forward_case;
using check::expect;

constexpr double EPS = 1.1920928955078125e-7;  // of float

// --- against the definitions ---------------------------------------------------------------------------------------

double largest(const oracle::Statistics &s) { return std::max(std::fabs(s.low), std::fabs(s.high)); }

// Sums of values: 64 partial sums of at most 16 values each, over a block.
double mean_tolerance(const oracle::Statistics &s) { return 8 * EPS * largest(s); }

// The certificate's width; the sum's rounding, EPS times a few, over its slope, which is (phi - 1) times the weights
// (for phi > 2 the p-th root makes up for the power); and the rounding of the values' own unit.
double center_tolerance(const Case &a, const oracle::Statistics &s, double phi) {
    if (phi == 2) return mean_tolerance(s);
    const double rounding = phi < 2 ? 16 * EPS * s.std / (phi - 1) : 16 * EPS * (s.high - s.low);
    return 1.01 * a.rtol * s.std + rounding + 4 * EPS * largest(s);
}

// Of var about a center that was reported: errors of the means of blocks, and of their distance from the center.
double variance_tolerance(const oracle::Statistics &s, double center) {
    const double offset = std::fabs(s.mean - center), error = mean_tolerance(s) + EPS * std::fabs(center);
    return 32 * EPS * (s.std * s.std + offset * offset) + 2 * (s.std + offset) * error + 4 * error * error;
}

bool near(double got, double expected, double tolerance) {
    const double as_float = float(expected);
    if (std::isinf(as_float) || std::isnan(as_float)) return storage::same(got, as_float);
    return std::fabs(got - expected) <= tolerance + EPS * std::fabs(expected) + 1.5e-45;
}

void check_center(const Case &a, const oracle::Statistics &s, double phi, std::size_t count, double got) {
    const bool closed = phi == 1 || phi > oracle::LARGEST_PHI || count <= 2;
    expect(got >= float(s.low) && got <= float(s.high), "center %.9g outside [%.9g, %.9g]", got, s.low, s.high);
    if (closed && a.kind == AUGSERVE_AUG)
        expect(near(got, s.center, 0), "center %.9g, exactly %.9g (phi %g, m %zu)", got, s.center, phi, count);
    else if (a.kind != AUGSERVE_AUG || phi == 2)
        expect(near(got, s.center, mean_tolerance(s)), "mean %.9g, expected %.9g", got, s.center);
    else if (a.max_steps >= ENOUGH_STEPS)
        expect(near(got, s.center, center_tolerance(a, s, phi)),
               "center %.9g, expected %.9g: off %.2g std (phi %g, m %zu)",
               got, s.center, (got - s.center) / s.std, phi, count);
    else if (phi < 2)
        expect(near(got, s.mean, 1.002 * s.std + mean_tolerance(s)), "center %.9g far from the mean %.9g", got, s.mean);
}

void check_statistics(const Case &a, const Result &r, const oracle::Statistics &s, std::int64_t c, std::size_t at,
                      std::size_t count) {
    const double center = r.center[at], spread = r.spread[at], first = r.first[at], second = r.second[at];
    if (!s.finite) {
        expect(std::isnan(center) && std::isnan(spread), "statistics %g, %g of values that are not finite", center,
               spread);
        return;
    }
    check_center(a, s, a.phi(c), count, center);
    if (a.kind != AUGSERVE_AUG) {
        expect(near(spread, s.spread, 0), "range %.9g, expected %.9g", spread, s.spread);
        expect(first == float(s.low) && second == float(s.high), "extremes %.9g %.9g", first, second);
        return;
    }
    expect(r.steps[at] >= 0 && r.steps[at] <= a.max_steps, "%d steps", int(r.steps[at]));
    // The others follow from the center that was found: var about it, its distance from the mean and from the ends.
    const double center_error = EPS * std::fabs(center), offset = s.mean - center,
        var = s.std * s.std + offset * offset;
    expect(near(spread, var, variance_tolerance(s, center)), "variance %.9g, expected %.9g", spread, var);
    if (s.low == s.high) expect(spread == 0, "variance %g of a constant", spread);
    expect(near(first, offset, mean_tolerance(s) + center_error), "mean - mu %.9g, expected %.9g", first, offset);
    const double reach = std::max(s.high - center, center - s.low);
    expect(near(second, reach, center_error), "reach %.9g, expected %.9g", second, reach);
}

// Running averages move toward the statistics that were reported, which were rounded to float since.
void check_moving(const Case &a, const Result &r, const oracle::Statistics &s, std::int64_t c) {
    const auto at = std::size_t(c);
    if (a.moving_center.empty() || (s.finite && !(r.spread[at] < 1e37))) return;
    const double spread = a.kind == AUGSERVE_ROBUST ? oracle::power_of_range(r.spread[at], a.exponent)
                                                    : r.spread[at] * (a.kind == AUGSERVE_AUG ? a.unbiased : 1);
    const auto check = [&](const char *what, double got, double before, double now) {
        const double expected = before + a.momentum * (now - before), size = std::fabs(before) + std::fabs(now);
        const double tolerance = 2 * EPS * size + 2e-45;  // of two roundings to float
        expect(s.finite ? std::fabs(got - expected) <= tolerance || storage::same(got, float(expected)) :
               std::isnan(got),
               "moving %s %.9g, expected %.9g", what, got, expected);
    };
    check("center", r.moving_center[at], a.moving_center[at], r.center[at]);
    check("spread", r.moving_spread[at], a.moving_spread[at], spread);
}

bool between(double value, double low, double high, std::int64_t dtype) {
    if (dtype == AUGSERVE_FLOAT32) return value >= float(low) && value <= float(high);
    using storage::narrow;
    using storage::widen;
    return value >= widen(narrow(float(low), dtype), dtype) && value <= widen(narrow(float(high), dtype), dtype);
}

// A group's statistics in use, from those that were reported where float could hold them.
struct Used {
    double center, spread, own_center;
    double spread_error;  // relative
};
Used used(const Case &a, const Result &r, const oracle::Statistics &s, std::int64_t g, std::int64_t c) {
    const std::size_t at = std::size_t(g * a.shape.channels + c), channel = std::size_t(c);
    const double lambda = a.lambda(g), center = r.center[at];
    if (lambda == 1) return {a.running_center[channel], a.running_spread[channel], 0, 0};
    double spread = r.spread[at], error = 0;
    if (s.finite && !(std::isfinite(spread) && spread > 1e-37)) {
        const bool aug = a.kind == AUGSERVE_AUG;
        spread = aug ? s.std * s.std + std::pow(s.mean - center, 2) : s.spread;
        error = aug && spread > 0 ? variance_tolerance(s, center) / spread : 0;
    }
    if (a.kind == AUGSERVE_ROBUST) spread = oracle::power_of_range(spread, a.exponent);
    if (lambda == 0) return {center, spread, center, error};
    return {oracle::blend(lambda, a.running_center[channel], center),
            oracle::blend(lambda, a.running_spread[channel], spread), center, error};
}

// Each of y's few operations rounds by EPS / 2, the scale and the reported center too (by a subnormal at least).
void check_values(const Case &a, const Tensor &x, const Result &r, const Used &u, const std::vector<std::int64_t> &rows,
                  std::int64_t c) {
    const double gamma = a.weight.empty() ? 1 : double(a.weight[std::size_t(c)]);
    const double beta = a.bias.empty() ? 0 : double(a.bias[std::size_t(c)]);
    const double scale = gamma / oracle::divisor(a.kind, u.spread, a.exponent, a.eps);
    for (const std::int64_t n : rows)
        for (std::int64_t l = 0; l < a.shape.positions; l++) {
            const double y = r.y.get(n, c, l), part = scale * (x.get(n, c, l) - u.center), expected = part + beta;
            const double tolerance =
                u.spread_error * std::fabs(part) +
                EPS * (4 * std::fabs(part) + std::fabs(scale * u.own_center) + std::fabs(scale * u.center) / 2 +
                       2 * std::fabs(beta)) +
                2e-45 * (1 + std::fabs(scale));
            const bool right = std::isfinite(expected)
                                   ? between(y, expected - tolerance, expected + tolerance, a.dtype)
                                   : storage::same(y, expected) || (std::isnan(expected) && std::isnan(y));
            if (!expect(right, "y[%d, %d, %d] = %.9g, expected %.9g +- %.2g; x %.9g",
                        int(n), int(c), int(l), y, expected, tolerance, x.get(n, c, l)))
                return;
        }
}

// A constant gives the bias, to the bit, however large it is.
void check_constant(const Case &a, const Result &r, const std::vector<std::int64_t> &rows, std::int64_t c) {
    const float beta = a.bias.empty() ? 0 : a.bias[std::size_t(c)];
    const double expected = a.dtype == AUGSERVE_FLOAT32 ? beta :
        storage::widen(storage::narrow(beta, a.dtype), a.dtype);
    for (const std::int64_t n : rows)
        expect(r.y.get(n, c, 0) == expected, "y = %.9g of a constant, expected %.9g", r.y.get(n, c, 0), expected);
}

oracle::Values values_of(const Tensor &x, const std::vector<std::int64_t> &rows, std::int64_t c) {
    oracle::Values values;
    for (const std::int64_t n : rows)
        for (std::int64_t l = 0; l < x.shape.positions; l++) values.push_back(x.get(n, c, l));
    return values;
}

void check_against_oracle(const Case &a, const Tensor &x, const Result &r) {
    for (std::int64_t g = 0; g < a.groups(); g++) {
        const std::vector<std::int64_t> rows = a.rows_of(g);
        if (rows.empty()) continue;
        for (std::int64_t c = 0; c < a.shape.channels; c++) {
            const std::size_t at = std::size_t(g * a.shape.channels + c);
            const oracle::Values values = values_of(x, rows, c);
            oracle::Statistics s{};
            if (a.lambda(g) == 1) {
                expect(r.center[at] == UNWRITTEN && r.steps[at] == -1, "statistics written with lambda = 1");
            } else {
                s = oracle::statistics(values, a.kind, a.phi(c));
                check_statistics(a, r, s, c, at, values.size());
                check_moving(a, r, s, c);
                if (s.finite && s.low == s.high && a.lambda(g) == 0) check_constant(a, r, rows, c);
            }
            check_values(a, x, r, used(a, r, s, g, c), rows, c);
        }
    }
}

// --- against themselves --------------------------------------------------------------------------------------------

// Some rows and channels, laid out as they are in x, for a run of their own.
Tensor part_of(const Tensor &x, const std::vector<std::int64_t> &rows, std::int64_t first, std::int64_t channels) {
    const storage::Shape shape{std::int64_t(rows.size()), channels, x.shape.positions};
    Tensor part(shape, x.layout, x.dtype);
    for (std::int64_t n = 0; n < shape.rows; n++)
        for (std::int64_t c = 0; c < channels; c++)
            for (std::int64_t l = 0; l < shape.positions; l++)
                part.set(n, c, l, x.get(rows[std::size_t(n)], first + c, l));
    return part;
}

template <class T>
std::vector<T> one_of(const std::vector<T> &values, std::int64_t index) {
    return values.empty() ? values : std::vector<T>{values[std::size_t(index)]};
}

void expect_same(const Case &a, const Result &whole, std::int64_t g, const Result &part, std::int64_t part_group,
                 std::int64_t first, std::int64_t channels, const std::vector<std::int64_t> &part_rows,
                     const char *what) {
    const std::vector<std::int64_t> rows = a.rows_of(g);
    for (std::int64_t c = 0; c < channels; c++) {
        const std::size_t at = std::size_t(g * a.shape.channels + first + c),
            own = std::size_t(part_group * channels + c);
        using storage::same;
        if (!rows.empty())
            expect(same(whole.center[at], part.center[own]) && same(whole.spread[at], part.spread[own]) &&
                       same(whole.first[at], part.first[own]) && same(whole.second[at], part.second[own]) &&
                       whole.steps[at] == part.steps[own],
                   "%s: other statistics, center %.9g and %.9g", what, whole.center[at], part.center[own]);
        for (std::size_t i = 0; i < rows.size(); i++)
            for (std::int64_t l = 0; l < a.shape.positions; l++) {
                const double y = whole.y.get(rows[i], first + c, l), alone = part.y.get(part_rows[i], c, l);
                if (!expect(same(y, alone), "%s: y[%d, %d, %d] = %.9g and %.9g", what, int(rows[i]), int(first + c),
                            int(l), y,
                            alone))
                    return;
            }
    }
}

void check_group_alone(Random &random, const Case &a, const Tensor &x, const Result &whole) {
    const std::int64_t g = random.below(a.groups());
    const std::vector<std::int64_t> rows = a.rows_of(g);
    if (rows.empty()) return;
    Case alone = a;
    const Tensor part = part_of(x, rows, 0, a.shape.channels);
    alone.shape = part.shape;
    alone.y_layout = storage::dense(part.shape);
    // Channels side by side in both tensors take a way of their own: the group alone has to take the same one.
    const auto &s = part.shape;
    if (a.y_layout.channel == 1)
        alone.y_layout = {s.channels * s.positions, 1, s.channels};
    else
        alone.y_layout = {2 * s.channels * s.positions, 2 * s.positions, 2};
    alone.order.clear();
    alone.offsets.clear();
    alone.tracked = one_of(a.tracked, g);
    expect_same(a, whole, g, run(alone, part, 1, nullptr), 0, 0, a.shape.channels, alone.rows_of(0), "group alone");
}

// Not where channels lie side by side: 8 or more of them take another way than fewer.
void check_channel_alone(Random &random, const Case &a, const Tensor &x, const Result &whole) {
    if (x.layout.channel == 1 && a.shape.channels >= 8) return;
    const std::int64_t c = random.below(a.shape.channels);
    Case alone = a;
    std::vector<std::int64_t> all(std::size_t(a.shape.rows), 0);
    for (std::size_t n = 0; n < all.size(); n++) all[n] = std::int64_t(n);
    const Tensor part = part_of(x, all, c, 1);
    alone.shape = part.shape;
    alone.y_layout = storage::dense(part.shape);
    alone.weight = one_of(a.weight, c), alone.bias = one_of(a.bias, c), alone.exponents = one_of(a.exponents, c);
    alone.start = one_of(a.start, c);
    alone.moving_center = one_of(a.moving_center, c), alone.moving_spread = one_of(a.moving_spread, c);
    alone.running_center = one_of(a.running_center, c), alone.running_spread = one_of(a.running_spread, c);
    const Result r = run(alone, part, 1, nullptr);
    for (std::int64_t g = 0; g < a.groups(); g++) expect_same(a, whole, g, r, g, c, 1, a.rows_of(g), "channel alone");
}

// Short rows are cut into the same blocks wherever they lie (see view.hpp), and give the same sums; rows of 1024 values
// or more are cut in another way where they are read without a copy, and so are 8 channels or more side by side.
void check_other_layout(Random &random, const Case &a, const Tensor &x, const Result &whole) {
    if (a.shape.positions >= 1024 || a.shape.channels >= 8) return;
    Tensor other(a.shape, draw::layout(random, a.shape, false), a.dtype, random.below(3));
    for (std::int64_t c = 0; c < a.shape.channels; c++)
        for (std::int64_t n = 0; n < a.shape.rows; n++)
            for (std::int64_t l = 0; l < a.shape.positions; l++) other.set(n, c, l, x.get(n, c, l));
    const Result again = run(a, other, 1, nullptr);
    for (std::int64_t g = 0; g < a.groups(); g++)
        expect_same(a, whole, g, again, g, 0, a.shape.channels, a.rows_of(g), "other layout");
}

void check_again(Random &random, const Case &a, const Tensor &x, const Result &whole) {
    int calls = 0;
    const augserve_executor executors[] = {{draw::backwards, &calls}, {draw::on_threads, &calls}};
    const std::int64_t which = random.below(3);
    const bool noted = !random.one_in(4);
    Result again = run(a, x, random.of<std::int64_t>({0, 1, 2, 3, 5}), which < 2 ? &executors[which] : nullptr, noted);
    expect(again.y.copy() == whole.y.copy(), "again with other threads: other bits");
    if (!noted) again.center = whole.center, again.steps = whole.steps;
    for (std::size_t c = 0; c < whole.moving_center.size(); c++)
        expect(storage::same(again.moving_center[c], whole.moving_center[c]) &&
                   storage::same(again.moving_spread[c], whole.moving_spread[c]),
               "again with other threads: other running averages");
    for (std::size_t k = 0; k < again.center.size(); k++)
        expect(storage::same(again.center[k], whole.center[k]) && again.steps[k] == whole.steps[k],
               "again with other threads: other statistics");
}

// y = max(0, norm(x) + residual) is what the norm's own y gives.
void check_ending(Random &random, const Case &a, const Tensor &x, const Result &whole) {
    Tensor residual(a.shape, a.y_layout, a.dtype, random.below(3));
    draw::fill(random, residual, false);
    Case ended = a;
    ended.residual = random.one_in(4) ? nullptr : &residual;
    ended.relu = !ended.residual || random.one_in(2);
    const Result r = run(ended, x, random.below(4), nullptr);
    expect(r.y.untouched(), "written between the elements of y, with an ending");
    const double rounding = a.dtype == AUGSERVE_FLOAT32 ? EPS : a.dtype == AUGSERVE_FLOAT16 ? 0x1p-10 : 0x1p-7;
    for (std::int64_t n = 0; n < a.shape.rows; n++)
        for (std::int64_t c = 0; c < a.shape.channels; c++)
            for (std::int64_t l = 0; l < a.shape.positions; l++) {
                const double y = whole.y.get(n, c, l), more = ended.residual ? residual.get(n, c, l) : 0;
                const double sum = y + more, expected = ended.relu && sum < 0 ? 0 : sum, got = r.y.get(n, c, l);
                if (!std::isfinite(sum)) {  // a sum may come back from beyond the largest half
                    expect(std::isnan(got) == std::isnan(sum) || !std::isfinite(y), "%g from %g + %g", got, y, more);
                    continue;
                }
                const double tolerance = rounding * (std::fabs(y) + std::fabs(more)) + 1e-7;
                expect(std::fabs(got - expected) <= tolerance || std::isinf(got), "%.9g with an ending, expected %.9g",
                       got, expected);
            }
}

// y may be x.
void check_in_place(Random &random, const Case &a, const Tensor &x) {
    Tensor values(a.shape, a.y_layout, a.dtype, random.below(3)), residual(a.shape, a.y_layout, a.dtype);
    for (std::int64_t n = 0; n < a.shape.rows; n++)
        for (std::int64_t c = 0; c < a.shape.channels; c++)
            for (std::int64_t l = 0; l < a.shape.positions; l++) values.set(n, c, l, x.get(n, c, l));
    draw::fill(random, residual, false);
    Case ended = a;
    ended.residual = random.one_in(2) ? &residual : nullptr;
    ended.relu = random.one_in(2);
    const Result apart = run(ended, values, 1, nullptr);
    run(ended, values, random.below(4), nullptr, true, true);
    expect(values.untouched(), "written between the elements of x and y");
    for (std::int64_t n = 0; n < a.shape.rows; n++)
        for (std::int64_t c = 0; c < a.shape.channels; c++)
            for (std::int64_t l = 0; l < a.shape.positions; l++) {
                const double y = apart.y.get(n, c, l), in_place = values.get(n, c, l);
                if (!expect(storage::same(y, in_place), "in place: y[%d, %d, %d] = %.9g, apart %.9g", int(n), int(c),
                            int(l), in_place, y))
                    return;
            }
}

void fuzz(std::uint32_t seed) {
    Random random(seed);
    const Case a = draw_case(random, seed);
    Tensor x(a.shape, draw::layout(random, a.shape, true), a.dtype, random.below(3));
    draw::fill(random, x, random.one_in(3));
    check::where() = described(a, seed, x);
    const std::vector<unsigned char> before = x.copy();
    const Result r = run(a, x, random.below(6), nullptr);
    expect(x.copy() == before, "x has changed");
    expect(r.y.untouched(), "written between the elements of y");
    check_again(random, a, x, r);
    if (a.shape.values() == 0) return;
    check_against_oracle(a, x, r);
    check_group_alone(random, a, x, r);
    check_channel_alone(random, a, x, r);
    check_other_layout(random, a, x, r);
    check_ending(random, a, x, r);
    check_in_place(random, a, x);
}

}  // namespace

int main(int count, char **arguments) {
    const auto number = [&](int k, int otherwise) { return count > k ? std::atoi(arguments[k]) : otherwise; };
    const int first = number(1, 1), cases = number(2, 2500);
    for (int k = 0; k < cases; k++) fuzz(std::uint32_t(first + k));
    return check::result();
}
