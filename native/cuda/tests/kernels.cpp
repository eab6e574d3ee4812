// Runs of norms by the kernels themselves, on emulated threads: against the definitions, and against themselves to the
// bit: a group alone, beside NaN, out of alignment, with threads and blocks in another order.
// Arguments: first seed, number of cases.

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "../src/forward.hpp"
#include "check.hpp"
#include "draw.hpp"
#include "oracle.hpp"

namespace {

using namespace augserve::cuda;
using check::expect;
using draw::Random;

constexpr double EPS = 1.1920928955078125e-7;  // of float

// --- a case ----------------------------------------------------------------------------------------------------------

template <class T>
T rounded(double value) {
    T result;
    round_to(float(value), result);
    return result;
}

template <class T>
struct Case {
    std::int64_t rows, channels, positions;
    augserve_kind kind;
    double exponent, eps, rtol;
    bool relu;
    Limits limits;
    std::vector<std::int64_t> group;  // of each row
    std::vector<float> lambda;        // of each group
    std::vector<float> weight, bias, running_center, running_spread, exponents;  // the last may be empty
    std::vector<T> x, residual;                                                  // the last may be empty

    std::size_t at(std::int64_t n, std::int64_t c, std::int64_t l) const {
        return std::size_t((n * channels + c) * positions + l);
    }
    std::vector<std::int64_t> rows_of(std::int64_t g) const {
        std::vector<std::int64_t> found;
        for (std::int64_t n = 0; n < rows; n++)
            if (group[std::size_t(n)] == g) found.push_back(n);
        return found;
    }
    double phi(std::int64_t c) const { return exponents.empty() ? exponent : double(exponents[std::size_t(c)]); }
};

template <class T>
const T *pointer(const std::vector<T> &values) {
    return values.empty() ? nullptr : values.data();
}

// The bytes of y; `off`: values between an aligned address and the first one.
template <class T>
std::vector<T> run(const Case<T> &a, std::size_t off = 0) {
    std::vector<std::int64_t> order, offsets{0};
    std::vector<float> lambda;
    for (std::size_t g = 0; g < a.lambda.size(); g++) {
        const std::vector<std::int64_t> rows = a.rows_of(std::int64_t(g));
        if (rows.empty()) continue;
        order.insert(order.end(), rows.begin(), rows.end());
        offsets.push_back(std::int64_t(order.size()));
        lambda.push_back(a.lambda[g]);
    }
    const Plan made = plan(order, offsets, lambda, std::uint32_t(a.channels), std::uint32_t(a.positions), a.limits);
    Norm norm{};
    norm.weight = a.weight.data(), norm.bias = a.bias.data();
    norm.running_center = a.running_center.data(), norm.running_spread = a.running_spread.data();
    norm.exponents = pointer(a.exponents);
    norm.exponent = a.exponent, norm.eps = a.eps, norm.rtol = a.rtol;
    norm.max_steps = 32, norm.kind = a.kind, norm.relu = a.relu;
    norm.channels = std::uint32_t(a.channels), norm.positions = divisor(std::uint32_t(a.positions));

    const auto aligned = [](std::size_t size) {
        return std::unique_ptr<char, void (*)(void *)>(
            static_cast<char *>(std::aligned_alloc(256, (size + 511) / 256 * 256)), std::free);
    };
    const std::size_t bytes = a.x.size() * sizeof(T);
    const auto x = aligned(bytes + 64), y = aligned(bytes + 64), residual = aligned(bytes + 64);
    const auto scratch = aligned(scratch_size(made));
    std::memset(scratch.get(), 0xff, scratch_size(made));
    T *const from = reinterpret_cast<T *>(x.get()) + off, *const to = reinterpret_cast<T *>(y.get()) + off;
    T *const added = a.residual.empty() ? nullptr : reinterpret_cast<T *>(residual.get()) + off;
    std::copy(a.x.begin(), a.x.end(), from);
    std::copy(a.residual.begin(), a.residual.end(), added);
    forward(made, norm, Tensors<T>{from, to, added}, scratch.get(), nullptr);
    return std::vector<T>(to, to + a.x.size());
}

template <class T>
bool same(const T &a, const T &b) {
    return std::memcmp(&a, &b, sizeof(T)) == 0 || (std::isnan(to_float(a)) && std::isnan(to_float(b)));
}

// --- against the definitions -----------------------------------------------------------------------------------------

template <class T>
double unit_of(double y) {
    return std::is_same<T, float>::value ? EPS * std::fabs(y) : std::fabs(y) / 2048 + 3e-8;
}

template <class T>
void check_channel(const Case<T> &a, const std::vector<T> &y, std::int64_t g, std::int64_t c) {
    const std::vector<std::int64_t> rows = a.rows_of(g);
    const double lambda = double(a.lambda[std::size_t(g)]), phi = a.phi(c);
    double center = a.running_center[std::size_t(c)], spread = a.running_spread[std::size_t(c)], error = 0, wrong = 0;
    if (lambda != 1) {
        oracle::Values x;
        for (const std::int64_t n : rows)
            for (std::int64_t l = 0; l < a.positions; l++) x.push_back(to_float(a.x[a.at(n, c, l)]));
        const oracle::Statistics s = oracle::statistics(x, a.kind, phi);
        center = lambda == 0 ? s.center : lambda * center + (1 - lambda) * s.center;
        spread = lambda == 0 ? s.tracked : lambda * spread + (1 - lambda) * s.tracked;
        // The certificate's width, and rounding of the sums over their slope.
        const double largest = std::max(std::fabs(s.low), std::fabs(s.high));
        error = 2 * EPS * largest;
        if (a.kind == AUGSERVE_AUG && phi > 1 && phi != 2 && phi < oracle::LARGEST_PHI && x.size() > 2)
            error += a.rtol * s.std + 16 * EPS * (phi < 2 ? s.std / (phi - 1) : s.high - s.low);
        const double offset = std::fabs(s.mean - s.center);
        if (a.kind == AUGSERVE_AUG)
            wrong = (1 - lambda) * (2 * (offset + error) * error + 32 * EPS * (s.tracked + EPS * largest * largest)) /
                    (spread + a.eps) / 2;
        error *= 1 - lambda;
    }
    const double gain = double(a.weight[std::size_t(c)]) / oracle::divisor(a.kind, spread, a.exponent, a.eps);
    for (const std::int64_t n : rows)
        for (std::int64_t l = 0; l < a.positions; l++) {
            const std::size_t at = a.at(n, c, l);
            const double x = to_float(a.x[at]), part = gain * (x - center);
            const double more = a.residual.empty() ? 0 : double(to_float(a.residual[at]));
            const double sum = part + double(a.bias[std::size_t(c)]) + more;
            const double expected = a.relu && sum < 0 ? 0 : sum, got = to_float(y[at]);
            const double tolerance = std::fabs(gain) * error + std::fabs(part) * (wrong + 16 * EPS) +
                                     EPS * std::fabs(gain * center) + unit_of<T>(sum) +
                                     4 * EPS * (std::fabs(double(a.bias[std::size_t(c)])) + std::fabs(more)) + 1e-37;
            const bool overflow = std::is_same<T, Half>::value && std::fabs(expected) + tolerance > 65504;
            const bool right = std::isnan(expected) ? std::isnan(got)
                                                    : std::fabs(got - expected) <= tolerance ||
                                                          (overflow && got == std::copysign(HUGE_VAL, expected));
            if (!expect(right, "y[%d, %d, %d] = %.9g, expected %.9g +- %.2g", int(n), int(c), int(l), got, expected,
                        tolerance))
                return;
        }
}

// --- against themselves ----------------------------------------------------------------------------------------------

template <class T>
Case<T> rows_alone(const Case<T> &a, const std::vector<std::int64_t> &rows, float lambda) {
    Case<T> part = a;
    part.rows = std::int64_t(rows.size());
    part.group.assign(rows.size(), 0);
    part.lambda = {lambda};
    part.x.clear();
    part.residual.clear();
    for (const std::int64_t n : rows) {
        const auto from = std::ptrdiff_t(a.at(n, 0, 0)), to = std::ptrdiff_t(a.at(n + 1, 0, 0));
        part.x.insert(part.x.end(), a.x.begin() + from, a.x.begin() + to);
        if (a.residual.empty()) continue;
        part.residual.insert(part.residual.end(), a.residual.begin() + from, a.residual.begin() + to);
    }
    return part;
}

template <class T>
void check_alone(const Case<T> &a, const std::vector<T> &y, std::int64_t g) {
    const std::vector<std::int64_t> rows = a.rows_of(g);
    if (rows.empty()) return;
    const std::vector<T> alone = run(rows_alone(a, rows, a.lambda[std::size_t(g)]));
    const auto size = std::size_t(a.channels * a.positions);
    for (std::size_t n = 0; n < rows.size(); n++)
        for (std::size_t i = 0; i < size; i++) {
            const T &together = y[std::size_t(rows[n]) * size + i];
            if (!expect(same(alone[n * size + i], together), "group %d alone differs", int(g))) return;
        }
}

template <class T>
void check_beside_nan(const Case<T> &a, const std::vector<T> &y, std::int64_t g) {
    const std::vector<std::int64_t> rows = a.rows_of(g);
    if (rows.empty()) return;
    Case<T> hit = a;
    const std::int64_t c = a.channels / 2;
    hit.x[a.at(rows[0], c, a.positions / 2)] = rounded<T>(NAN);
    const std::vector<T> after = run(hit);
    const bool tracked = a.lambda[std::size_t(g)] == 1;
    for (std::int64_t n = 0; n < a.rows; n++)
        for (std::int64_t k = 0; k < a.channels; k++)
            for (std::int64_t l = 0; l < a.positions; l++) {
                const std::size_t at = a.at(n, k, l);
                const bool its = a.group[std::size_t(n)] == g && k == c;
                const bool nan = tracked ? its && n == rows[0] && l == a.positions / 2 : its;
                if (!expect(nan ? std::isnan(to_float(after[at])) : same(after[at], y[at]), "beside NaN, y[%d, %d, %d]",
                            int(n), int(k), int(l)))
                    return;
            }
}

template <class T>
void expect_same(const std::vector<T> &y, const std::vector<T> &other, const char *when) {
    for (std::size_t i = 0; i < y.size(); i++)
        if (!expect(same(y[i], other[i]), "%s, y %zu differs", when, i)) return;
}

template <class T>
void check_case(const Case<T> &a) {
    const std::vector<T> y = run(a);
    for (std::size_t g = 0; g < a.lambda.size(); g++)
        for (std::int64_t c = 0; c < a.channels; c++) check_channel(a, y, std::int64_t(g), c);
    const auto g = a.group[a.group.size() / 2];
    check_alone(a, y, g);
    check_beside_nan(a, y, g);
    expect_same(y, run(a, 1), "out of alignment");
    emulator::machine().backwards = true;
    expect_same(y, run(a), "with threads and blocks in another order");
    emulator::machine().backwards = false;
}

// --- drawing ---------------------------------------------------------------------------------------------------------

template <class T>
void fill(Random &random, Case<T> &a) {
    const auto values = std::size_t(a.rows * a.channels * a.positions);
    a.x.resize(values);
    constexpr bool half = !std::is_same<T, float>::value;
    for (std::int64_t c = 0; c < a.channels; c++) {
        const auto character = draw::Character(random.below(draw::CHARACTERS));
        const double unit = half ? random.of({1.0, 1e-3}) : random.of({1.0, 1.0, 1.0, 1e3, 1e-8, 1e30, 1e-30, 1e-40});
        const double own = random.normal();
        for (std::int64_t n = 0; n < a.rows; n++)
            for (std::int64_t l = 0; l < a.positions; l++)
                a.x[a.at(n, c, l)] = rounded<T>(unit * draw::value(random, character, own));
    }
    if (random.one_in(2)) a.residual = draw::some<T>(std::int64_t(values), [&] { return rounded<T>(random.normal()); });
}

template <class T>
Case<T> drawn(Random &random, std::int64_t most) {
    Case<T> a{};
    do {
        a.rows = random.of({1, 2, 3, 5, 9, 20, 300}), a.channels = random.of({1, 2, 3, 8, 9, 19});
        a.positions = random.of({1, 1, 2, 4, 7, 9, 12, 49, 64, 100, 225, 600});
    } while (a.rows * a.channels * a.positions > most);
    a.kind = augserve_kind(random.of({0, 0, 0, 0, 1, 2}));
    a.exponent = a.kind == AUGSERVE_AUG
                     ? random.of({1.0, 1.05, 1.25, 1.5, 1.5, 1.5, 1.75, 2.0, 3.0, 8.0, double(HUGE_VAL)})
                     : random.of({0.2, 0.5, 1.0, 2.0});
    a.eps = random.of({1e-5, 1e-3});
    a.rtol = random.of({1e-3, 1e-4, 1e-5});
    a.relu = random.one_in(2);
    a.limits = {std::uint64_t(random.of({0, 60, 1024})), std::uint64_t(random.of({0, 300, 4096})),
                std::uint64_t(random.of({0, 1000, 32768}))};
    a.limits.small_block = std::max(a.limits.small_block, a.limits.warp);
    a.limits.block = std::max(a.limits.block, a.limits.small_block);
    const std::int64_t groups = random.of({1, 2, 3, 4});
    a.group = draw::some<std::int64_t>(a.rows, [&] { return random.below(groups); });
    if (random.one_in(3)) std::sort(a.group.begin(), a.group.end());
    a.lambda = draw::some<float>(groups, [&] { return random.of({0.0, 0.0, 1.0, 0.4}); });
    a.weight = draw::some<float>(a.channels, [&] { return random.normal(); });
    a.bias = draw::some<float>(a.channels, [&] { return random.normal(); });
    a.running_center = draw::some<float>(a.channels, [&] { return random.of({1.0, 1.0, 1e4}) * random.normal(); });
    a.running_spread = draw::some<float>(a.channels, [&] { return random.uniform() + 0.1; });
    if (a.kind == AUGSERVE_AUG && random.one_in(5))
        a.exponents = draw::some<float>(
            a.channels, [&] { return random.of({1.0, 1.1, 1.5, 2.0, 2.5, 6.0, double(HUGE_VAL), 0.5, std::nan("")}); });
    fill(random, a);
    return a;
}

template <class T>
void test_drawn(std::uint32_t seed) {
    Random random(seed);
    const Case<T> a = drawn<T>(random, seed % 8 == 7 ? 60000 : 3000);
    check::where() = check::text("seed %u: %s (%d, %d, %d) kind %d exponent %g%s limits %d %d %d groups %zu", seed,
                                 sizeof(T) == 4 ? "float" : "half", int(a.rows), int(a.channels), int(a.positions),
                                 a.kind, a.exponent, a.exponents.empty() ? "" : " learned", int(a.limits.warp),
                                 int(a.limits.small_block), int(a.limits.block), a.lambda.size());
    check_case(a);
}

// Sets larger than a block takes, of a few channels and of parts that end anywhere; with phi near 1 and values that
// come in a few sizes, some of them need more passes than the launches give.
void test_large() {
    Random random(7);
    for (const double phi : {1.05, 1.0, 1.5, 3.0, 2.0}) {
        for (const std::int64_t positions : {std::int64_t(20601), std::int64_t(10000)}) {
            check::where() = check::text("large: phi %g positions %d", phi, int(positions));
            Case<float> a{};
            a.rows = 5, a.channels = 2, a.positions = positions;
            a.kind = AUGSERVE_AUG, a.exponent = phi, a.eps = 1e-5, a.rtol = 1e-4;
            a.group = {0, 1, 0, 0, 0}, a.lambda = {0, 0.4f};
            a.weight = {1, 2}, a.bias = {0, 1}, a.running_center = {1, 1}, a.running_spread = {1, 2};
            a.x = draw::some<float>(a.rows * a.channels * positions,
                                    [&] { return std::floor(2 * random.normal()) + 5; });
            for (std::int64_t n = 0; n < a.rows; n++)
                for (std::int64_t l = 0; l < positions; l++) a.x[a.at(n, 1, l)] = float(std::exp(random.normal()));
            const std::vector<float> y = run(a);
            for (std::int64_t g = 0; g < 2; g++)
                for (std::int64_t c = 0; c < 2; c++) check_channel(a, y, g, c);
            check_alone(a, y, 0);
        }
    }
}

// More groups than one launch carries to the device, and so many sets that blocks have all their warps.
void test_many_groups() {
    check::where() = "many groups";
    Random random(8);
    constexpr std::int64_t groups = 130;
    Case<float> a{};
    a.rows = 2 * groups, a.channels = 9, a.positions = 3;
    a.kind = AUGSERVE_AUG, a.exponent = 1.5, a.eps = 1e-5, a.rtol = 1e-4;
    for (std::int64_t n = 0; n < a.rows; n++) a.group.push_back(n * 7 % groups);
    a.lambda = draw::some<float>(groups, [&] { return random.of({0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0}); });
    a.weight.assign(9, 1), a.bias.assign(9, 0.5f), a.running_center.assign(9, 1), a.running_spread.assign(9, 2);
    a.x = draw::some<float>(a.rows * 27, [&] { return random.normal(); });
    const std::vector<float> y = run(a);
    for (std::int64_t g = 0; g < groups; g++)
        for (std::int64_t c = 0; c < 9; c++) check_channel(a, y, g, c);
}

void test_halves() {
    check::where() = "halves";
    for (std::uint32_t bits = 0; bits < 0x10000; bits++) {
        const Half half{std::uint16_t(bits)};
        const double expected = storage::widen(half.bits, AUGSERVE_FLOAT16);
        expect(storage::same(to_float(half), expected), "%04x is %g, not %g", bits, double(to_float(half)), expected);
        for (const float step : {0.75f, 1.0f, 1.0004f}) {
            const float near = to_float(half) * step;
            const std::uint16_t got = rounded<Half>(near).bits, right = storage::narrow(near, AUGSERVE_FLOAT16);
            expect(got == right || std::isnan(near), "%.9g becomes %04x, not %04x", double(near), got, right);
        }
    }
}

}  // namespace

int main(int count, char **arguments) {
    const std::uint32_t first = count > 1 ? std::uint32_t(std::atoi(arguments[1])) : 0;
    const std::uint32_t cases = count > 2 ? std::uint32_t(std::atoi(arguments[2])) : 120;
    for (std::uint32_t seed = first; seed < first + cases; seed++) {
        if (seed % 3 == 0)
            test_drawn<Half>(seed);
        else
            test_drawn<float>(seed);
    }
    test_halves();
    test_many_groups();
    test_large();
    return check::result();
}
