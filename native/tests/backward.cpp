// Random backward passes against the formulas in double, few values also against central differences of the loss, and
// against themselves with other threads and a channel alone, to the bit. Arguments: first seed, number of cases.

#include <cstdlib>

#include "check.hpp"
#include "draw.hpp"
#include "oracle.hpp"

namespace {

using check::expect;
using draw::Random;
using storage::Tensor;

constexpr double EPS = 1.1920928955078125e-7;  // of float
constexpr double LEAST = 1e-14;                // standard deviations from the median that a value is taken to be off it
constexpr double LOG_UNIT = 30;                // logarithm of the unit that the kernel may take distances in

struct Case {
    storage::Shape shape;
    augserve_kind kind;
    double exponent, eps;
    std::int64_t dtype, off;
    augserve_layout dx_layout;
    std::vector<float> weight, exponents;  // empty for NULL
    std::vector<float> center, spread, first, second;
    std::vector<float> bias;  // of y, where max(0, y) followed
    bool relu = false;

    double phi(std::int64_t c) const {
        return kind == AUGSERVE_AUG && !exponents.empty() ? double(exponents[std::size_t(c)]) : exponent;
    }
    oracle::Given given(std::int64_t c) const {
        const auto at = std::size_t(c);
        return {center[at], spread[at], first[at], second[at]};
    }
};

struct Result {
    Tensor dx;
    std::vector<float> dweight, dbias, dexponent;
};

template <class T>
const T *pointer(const std::vector<T> &values) {
    return values.empty() ? nullptr : values.data();
}

Result run(const Case &a, const Tensor &x, const Tensor &dy, std::int64_t threads, const augserve_executor *executor,
           bool parameters = true) {
    const std::vector<float> blank(std::size_t(a.shape.channels), 0.0f);
    Result r{Tensor(a.shape, a.dx_layout, a.dtype, a.off), blank, blank, blank};
    augserve_backward b{};
    b.kind = a.kind, b.dtype = a.dtype, b.threads = threads;
    b.rows = a.shape.rows, b.channels = a.shape.channels, b.positions = a.shape.positions;
    b.x_layout = x.layout, b.dy_layout = dy.layout, b.dx_layout = a.dx_layout;
    b.x = x.data(), b.dy = dy.data(), b.dx = r.dx.data();
    b.weight = pointer(a.weight), b.exponent = a.exponent, b.eps = a.eps, b.exponents = pointer(a.exponents);
    b.center = a.center.data(), b.spread = a.spread.data(), b.first = a.first.data(), b.second = a.second.data();
    if (parameters) b.dweight = r.dweight.data(), b.dbias = r.dbias.data();
    if (!a.exponents.empty()) b.dexponent = r.dexponent.data();
    b.relu = a.relu, b.bias = pointer(a.bias);
    const int code = augserve_run_backward(&b, executor);
    expect(code == 0, "backward returned %d: %s", code, augserve_message(code));
    return r;
}

oracle::Values values_of(const Tensor &x, std::int64_t c) {
    oracle::Values values;
    for (std::int64_t n = 0; n < x.shape.rows; n++)
        for (std::int64_t l = 0; l < x.shape.positions; l++) values.push_back(x.get(n, c, l));
    return values;
}

// --- drawing -----------------------------------------------------------------------------------------------------

// Statistics as the forward pass would hand them on; NaN of channels that are not finite.
void set_statistics(Case &a, const Tensor &x) {
    for (std::int64_t c = 0; c < a.shape.channels; c++) {
        const oracle::Statistics s = oracle::statistics(values_of(x, c), a.kind, a.phi(c));
        a.center.push_back(float(s.center));
        a.spread.push_back(float(s.spread));
        a.first.push_back(float(s.first));
        a.second.push_back(float(s.second));
    }
}

Case draw_case(Random &random, std::uint32_t seed) {
    Case a{};
    a.shape = draw::shape_of_case(random, seed);
    a.kind = augserve_kind(random.of({0, 0, 0, 1, 2}));
    a.dtype = random.of<std::int64_t>({0, 0, 1, 2});
    a.exponent = a.kind == AUGSERVE_AUG ? random.of({1.05, 1.1, 1.25, 1.5, 1.5, 1.5, 1.75, 2.0, 2.0, 3.0, 8.0})
                                        : random.of({0.2, 0.2, 0.5, 1.0, 2.0});
    a.eps = random.of({1e-5, 1e-5, 1e-3});
    a.dx_layout = draw::layout(random, a.shape, false);
    a.off = random.below(3);
    if (random.one_in(2)) a.weight = draw::some<float>(a.shape.channels, [&] { return random.normal(); });
    if (a.kind == AUGSERVE_AUG && random.one_in(3))
        a.exponents = draw::some<float>(a.shape.channels, [&] {
            return random.of({1.1, 1.5, 1.6, 2.0, 2.5, 3.0, 6.0}); });
    return a;
}

std::string described(const Case &a, std::uint32_t seed, const Tensor &x, const Tensor &dy) {
    return check::text("seed %u: kind %d dtype %d (%d, %d, %d) x (%d, %d, %d) dy (%d, %d, %d) dx (%d, %d, %d) "
                       "exponent %g%s",
                       seed, a.kind, int(a.dtype), int(a.shape.rows), int(a.shape.channels), int(a.shape.positions),
                       int(x.layout.row), int(x.layout.channel), int(x.layout.position), int(dy.layout.row),
                       int(dy.layout.channel), int(dy.layout.position), int(a.dx_layout.row), int(a.dx_layout.channel),
                       int(a.dx_layout.position), a.exponent, a.exponents.empty() ? "" : " per channel");
}

// --- against the formulas ------------------------------------------------------------------------------------------

// Float statistics hold variances, and ranges, of values of these sizes; others have no gradient to compare.
bool comparable(const oracle::Values &x, oracle::Given s) {
    for (const double value : x)
        if (!std::isfinite(value)) return false;
    const double size = std::max(std::fabs(s.center), std::fabs(s.second));
    return size < 1e15 && (s.second == 0 || s.second > 1e-12) && (s.spread == 0 || s.spread > 1e-24);
}

bool near(double got, double expected, double tolerance, std::int64_t dtype) {
    const double low = expected - tolerance, high = expected + tolerance;
    if (dtype == AUGSERVE_FLOAT32) return got >= float(low) && got <= float(high);
    using storage::narrow;
    using storage::widen;
    return got >= widen(narrow(low, dtype), dtype) && got <= widen(narrow(high, dtype), dtype);
}

// Rounding, in units of EPS times the size of the terms: sums of 16 values and of 64 partial sums; weights whose
// exponent q log2 a, of about 50 q at most, is itself rounded.
double rounding(const Case &a, double phi) { return EPS * (16 + (a.kind == AUGSERVE_AUG ? 40 * std::fabs(phi - 2) :
                                                                 0)); }

void check_channel(const Case &a, const Tensor &x, const Tensor &dy, const Result &r, std::int64_t c) {
    const oracle::Values values = values_of(x, c);
    const oracle::Given s = a.given(c);
    if (!comparable(values, s)) return;
    const double phi = a.phi(c), gamma = a.weight.empty() ? 1 : double(a.weight[std::size_t(c)]);
    const double least = a.kind == AUGSERVE_AUG ? LEAST * std::sqrt(s.spread) : 0;
    const oracle::Gradient g = oracle::gradient(values, values_of(dy, c), a.kind, phi, a.eps, gamma, s, least);
    const double tolerance = rounding(a, phi);
    for (std::int64_t n = 0, i = 0; n < a.shape.rows; n++)
        for (std::int64_t l = 0; l < a.shape.positions; l++, i++) {
            const double dx = r.dx.get(n, c, l), expected = g.dx[std::size_t(i)];
            const double error = tolerance * g.size[std::size_t(i)] + 1e-40;
            if (!expect(near(dx, expected, error, a.dtype), "dx[%d, %d, %d] = %.9g, expected %.9g +- %.2g (phi %g)",
                        int(n),
                        int(c), int(l), dx, expected, error, phi))
                return;
        }
    const auto at = std::size_t(c);
    const auto float_near = [](double got, double expected, double error) {
        return near(got, expected, error, AUGSERVE_FLOAT32);
    };
    expect(float_near(r.dweight[at], g.dweight, tolerance * g.weight_size), "dweight %.9g, expected %.9g",
           r.dweight[at],
           g.dweight);
    expect(float_near(r.dbias[at], g.dbias, tolerance * g.bias_size), "dbias %.9g, expected %.9g", r.dbias[at],
           g.dbias);
    if (!a.exponents.empty())
        expect(float_near(r.dexponent[at], g.dexponent, 4 * tolerance * g.exponent_size + LOG_UNIT * g.exponent_unit),
               "dexponent %.9g, expected %.9g of terms of %.3g (phi %g)", r.dexponent[at], g.dexponent,
                   g.exponent_size, phi);
}

// --- against themselves --------------------------------------------------------------------------------------------

bool same_bits(const Tensor &a, const Tensor &b) { return a.copy() == b.copy(); }

void check_again(Random &random, const Case &a, const Tensor &x, const Tensor &dy, const Result &whole) {
    int calls = 0;
    const augserve_executor executors[] = {{draw::backwards, &calls}, {draw::on_threads, &calls}};
    const std::int64_t which = random.below(3);
    const Result again = run(a, x, dy, random.of<std::int64_t>({0, 1, 2, 3, 5}), which < 2 ? &executors[which] :
                             nullptr,
                             !random.one_in(4));
    expect(same_bits(again.dx, whole.dx), "again with other threads: other bits");
    for (std::size_t c = 0; c < again.dexponent.size(); c++)
        expect(storage::same(again.dexponent[c], whole.dexponent[c]), "again with other threads: other dexponent");
}

Tensor channel_of(const Tensor &x, std::int64_t c, bool as_it_lies) {
    const storage::Shape shape{x.shape.rows, 1, x.shape.positions};
    Tensor one(shape, as_it_lies ? x.layout : storage::dense(shape), x.dtype);
    for (std::int64_t n = 0; n < shape.rows; n++)
        for (std::int64_t l = 0; l < shape.positions; l++) one.set(n, 0, l, x.get(n, c, l));
    return one;
}

// Not where channels lie side by side: 8 or more of them take another way than fewer.
void check_channel_alone(Random &random, const Case &a, const Tensor &x, const Tensor &dy, const Result &whole) {
    if (x.layout.channel == 1 && a.shape.channels >= 8) return;
    const std::int64_t c = random.below(a.shape.channels);
    const auto one_of = [&](const std::vector<float> &all) {
        return all.empty() ? all : std::vector<float>{all[std::size_t(c)]};
    };
    Case alone = a;
    alone.shape.channels = 1;
    alone.weight = one_of(a.weight), alone.exponents = one_of(a.exponents);
    alone.center = one_of(a.center), alone.spread = one_of(a.spread);
    alone.first = one_of(a.first), alone.second = one_of(a.second);
    const Result r = run(alone, channel_of(x, c, random.one_in(2)), channel_of(dy, c, false), 1, nullptr);
    for (std::int64_t n = 0; n < a.shape.rows; n++)
        for (std::int64_t l = 0; l < a.shape.positions; l++)
            if (!expect(storage::same(whole.dx.get(n, c, l), r.dx.get(n, 0, l)),
                        "channel alone: dx[%d, %d, %d] = %.9g and %.9g",
                        int(n), int(c), int(l), whole.dx.get(n, c, l), r.dx.get(n, 0, l)))
                return;
    expect(storage::same(whole.dweight[std::size_t(c)], r.dweight[0]) &&
           storage::same(whole.dbias[std::size_t(c)], r.dbias[0]),
           "channel alone: other gradients of the parameters");
}

// y of one value, by the statistics that backward is given; NaN where they are.
double y_of(const Case &a, double x, std::int64_t c) {
    const auto at = std::size_t(c);
    const double spread = a.spread[at], gamma = a.weight.empty() ? 1 : double(a.weight[at]);
    const double divisor = a.kind == AUGSERVE_AUG ? std::sqrt(spread + a.eps)
                                                  : (spread > 0 ? std::pow(spread, a.exponent) : 0.0) + a.eps;
    return (x - a.center[at]) * (gamma / divisor) + (a.bias.empty() ? 0 : double(a.bias[at]));
}

// Through max(0, y) as with dy that is 0 where y is not positive. Where y is so near 0 that rounding gives its sign, dy is
// 0 in both.
void check_gate(Random &random, const Case &a, const Tensor &x, const Tensor &dy) {
    Case gated = a;
    gated.relu = true;
    if (random.one_in(2)) gated.bias = draw::some<float>(a.shape.channels, [&] { return random.normal(); });
    // The elements of dy may be one: these may not.
    const bool side_by_side = x.layout.channel == 1;
    const augserve_layout layout = side_by_side ? storage::channels_last(a.shape) : storage::dense(a.shape);
    Tensor clear(a.shape, layout, dy.dtype), masked(a.shape, layout, dy.dtype);
    for (std::int64_t c = 0; c < a.shape.channels; c++)
        for (std::int64_t n = 0; n < a.shape.rows; n++)
            for (std::int64_t l = 0; l < a.shape.positions; l++) {
                const double y = y_of(gated, x.get(n, c, l), c), bias = gated.bias.empty() ? 0 : gated.bias[std::size_t(c)];
                const bool unclear = std::fabs(y) <= 1e-5 * (1 + std::fabs(bias)) || std::fabs(y) > 1e30;
                const double here = unclear ? 0 : dy.get(n, c, l);
                clear.set(n, c, l, here);
                masked.set(n, c, l, y <= 0 ? 0 : here);
            }
    const std::int64_t threads = random.below(4);
    const Result through = run(gated, x, clear, threads, nullptr), before = run(a, x, masked, threads, nullptr);
    // In lanes the two are two functions, which a compiler may round otherwise.
    const double rounding = side_by_side && a.shape.channels >= 8 ? 8 * EPS : 0;
    const auto alike = [&](double got, double expected, double size) {
        return storage::same(float(got), float(expected)) || std::fabs(got - expected) <= rounding * size;
    };
    for (std::int64_t c = 0; c < a.shape.channels; c++) {
        double size = 0, sum = 0;
        for (std::int64_t n = 0; n < a.shape.rows; n++)
            for (std::int64_t l = 0; l < a.shape.positions; l++) {
                size = std::max(size, std::fabs(before.dx.get(n, c, l)));
                sum += std::fabs(masked.get(n, c, l)) * (1 + std::fabs(y_of(a, x.get(n, c, l), c)));
            }
        for (std::int64_t n = 0; n < a.shape.rows; n++)
            for (std::int64_t l = 0; l < a.shape.positions; l++)
                if (!expect(alike(through.dx.get(n, c, l), before.dx.get(n, c, l), size),
                            "dx[%d, %d, %d] = %.9g through a ReLU, %.9g with dy masked", int(n), int(c), int(l),
                            through.dx.get(n, c, l), before.dx.get(n, c, l)))
                    return;
        const auto at = std::size_t(c);
        expect(alike(through.dweight[at], before.dweight[at], sum) && alike(through.dbias[at], before.dbias[at], sum),
               "through a ReLU: other gradients of the parameters");
    }
}

void fuzz(std::uint32_t seed) {
    Random random(seed);
    Case a = draw_case(random, seed);
    Tensor x(a.shape, draw::layout(random, a.shape, true), a.dtype, random.below(3));
    Tensor dy(a.shape, draw::layout(random, a.shape, true), a.dtype, random.below(3));
    draw::fill(random, x, random.one_in(3));
    for (std::int64_t c = 0; c < a.shape.channels; c++)
        for (std::int64_t n = 0; n < a.shape.rows; n++)
            for (std::int64_t l = 0; l < a.shape.positions; l++) dy.set(n, c, l, random.normal());
    set_statistics(a, x);
    check::where() = described(a, seed, x, dy);
    const Result r = run(a, x, dy, random.below(6), nullptr);
    expect(r.dx.untouched(), "written between the elements of dx");
    check_again(random, a, x, dy, r);
    if (a.shape.values() == 0) return;
    for (std::int64_t c = 0; c < a.shape.channels; c++) check_channel(a, x, dy, r, c);
    check_channel_alone(random, a, x, dy, r);
    check_gate(random, a, x, dy);
}

// --- against differences -------------------------------------------------------------------------------------------

// Few values, none of which is near the median, where weights have a pole and differences tell nothing.
oracle::Values few_values(Random &random, double phi) {
    for (;;) {
        oracle::Values x(std::size_t(3 + random.below(8)));
        for (double &value : x) value = float(random.normal());
        const double mu = oracle::median(x, phi);
        bool clear = true;
        for (const double value : x) clear = clear && std::fabs(value - mu) > 0.1;
        if (clear) return x;
    }
}

// Errors: of differences 1e-6 or so, of float statistics in weights next to the median EPS / 0.1 times a few.
void check_differences(std::uint32_t seed) {
    Random random(seed);
    const auto kind = augserve_kind(random.of({0, 0, 1}));
    const double phi = kind == AUGSERVE_AUG ? double(float(random.of({1.3, 1.5, 1.8, 2.0, 3.0, 5.0}))) : 0.2;
    const double eps = 1e-3, gamma = float(random.normal()), h = 1e-5;
    const oracle::Values x = few_values(random, kind == AUGSERVE_AUG ? phi : 2);
    const auto m = std::int64_t(x.size());
    const storage::Shape shape{m, 1, 1};
    Tensor values(shape, storage::dense(shape), AUGSERVE_FLOAT32), dy(shape, storage::dense(shape), AUGSERVE_FLOAT32);
    for (std::int64_t i = 0; i < m; i++) values.set(i, 0, 0, x[std::size_t(i)]), dy.set(i, 0, 0, random.normal());
    Case a{shape, kind, phi, eps, AUGSERVE_FLOAT32, 0, storage::dense(shape), {float(gamma)}, {}, {}, {}, {}, {}, {}};
    if (kind == AUGSERVE_AUG) a.exponents = {float(phi)};
    check::where() = check::text("differences, seed %u: kind %d exponent %g m %d", seed, kind, phi, int(m));
    set_statistics(a, values);
    const Result r = run(a, values, dy, 1, nullptr);
    const oracle::Values g = values_of(dy, 0);
    const oracle::Gradient formula = oracle::gradient(x, g, kind, phi, eps, gamma, a.given(0), 0);
    const auto loss = [&](const oracle::Values &at, double exponent) {
        return oracle::loss(at, g, kind, exponent, eps, gamma);
    };
    for (std::size_t i = 0; i < x.size(); i++) {
        oracle::Values up = x, down = x;
        up[i] += h, down[i] -= h;
        const double slope = (loss(up, phi) - loss(down, phi)) / (2 * h), size = formula.size[i];
        expect(std::fabs(formula.dx[i] - slope) <= 1e-5 * size, "formula %.9g, difference %.9g", formula.dx[i], slope);
        expect(std::fabs(r.dx.get(std::int64_t(i), 0, 0) - slope) <= 2e-5 * size, "dx %.9g, difference %.9g",
               r.dx.get(std::int64_t(i), 0, 0), slope);
    }
    if (kind != AUGSERVE_AUG || phi == 2) return;  // phi = 2 is a closed form of the oracle: no difference about it
    const double slope = (loss(x, phi + h) - loss(x, phi - h)) / (2 * h);
    expect(std::fabs(r.dexponent[0] - slope) <= 2e-5 * formula.exponent_size, "dexponent %.9g, difference %.9g",
           r.dexponent[0], slope);
}

}  // namespace

int main(int count, char **arguments) {
    const auto number = [&](int k, int otherwise) { return count > k ? std::atoi(arguments[k]) : otherwise; };
    const int first = number(1, 1), cases = number(2, 1500);
    for (int k = 0; k < cases; k++) fuzz(std::uint32_t(first + k));
    for (int k = 0; k < cases / 4; k++) check_differences(std::uint32_t(first + k));
    return check::result();
}
