// What the kernels compute with, apart from kernels: division by a constant, selection, the solver's steps and the
// plan, each against the plainest way to say the same.

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "../src/median.cuh"
#include "../src/plan.hpp"
#include "check.hpp"
#include "draw.hpp"
#include "oracle.hpp"

namespace {

using namespace augserve::cuda;
using check::expect;
using draw::Random;

void test_division() {
    check::where() = "division";
    Random random(1);
    for (int k = 0; k < 20000; k++) {
        const auto by = std::uint32_t(1 + random.below(std::int64_t(1) << random.below(31)));
        const auto n = std::uint32_t(random.below(std::int64_t(1) << 31));
        const Divisor d = divisor(by);
        for (const std::uint32_t at : {n, n / by * by, n / by * by + by - 1, 0u, 0x7fffffffu})
            if (at < 0x80000000u) expect(d.divide(at) == at / by, "%u / %u = %u", at, by, d.divide(at));
    }
}

// --- the median, with sums as the passes take them, but in double and one after the other -----------------------------

Moments moments_of(const std::vector<float> &x) {
    Moments m{0, 0, x[0], x[0], 0, 0};
    for (const float value : x) {
        m.mean += double(value) / double(x.size());
        m.low = std::min(m.low, value);
        m.high = std::max(m.high, value);
        m.zeros += value == 0;
    }
    for (const float value : x) m.squares += (double(value) - m.mean) * (double(value) - m.mean);
    m.settle();
    return m;
}

Partial pass(const std::vector<float> &x, const Point &at) {
    Partial sums{};
    sums.above = 0xffffffffu;
    for (const float value : x) {
        if (at.method == COUNTS) {
            const std::uint32_t key = key_of_bits(float_bits(value));
            for (int k = 0; k < PIVOTS; k++)
                sums.at_most[k] += key <= Selection::pivot(at.from, at.to, at.stride, k);
            if (key > at.to) sums.above = std::min(sums.above, key);
            continue;
        }
        const double d = double(at.y) - (double(value) * double(at.scale) - double(at.center)) / at.std;
        const double a = std::max(std::fabs(d) * (at.method == SIDES ? double(at.inverse_reach) : 1), 1e-30);
        const double w = std::pow(a, double(at.power));
        if (at.method == SIDES) {
            sums.sums[d > 0 ? 0 : 1] += w * a;
            sums.sums[d > 0 ? 2 : 3] += w;
        } else if (!at.without_zeros || value != 0) {
            sums.sums[0] += w;
            sums.sums[1] += w * d;
        }
    }
    return sums;
}

struct Found {
    Median median;
    int passes;
};
Found solve(const std::vector<float> &x, const Solver &solver) {
    Found found{};
    found.median.begin(moments_of(x), x.size(), solver);
    for (;; found.passes++) {
        const Point at = found.median.point();
        if (at.method == NOTHING || found.passes > 1000) return found;
        Totals totals = Totals::none();
        totals.add(pass(x, at));
        found.median.advance(totals);
    }
}

std::vector<float> drawn(Random &random, std::size_t count, draw::Character character, double unit) {
    const double own = random.normal();
    return draw::some<float>(std::int64_t(count), [&] { return unit * draw::value(random, character, own); });
}

void test_solver() {
    Random random(2);
    for (int k = 0; k < 400; k++) {
        const auto character = draw::Character(random.below(draw::CHARACTERS));
        const std::size_t count = std::size_t(1 + random.below(random.of({3, 9, 40, 700})));
        const double phi = random.of({1.05, 1.25, 1.5, 1.5, 1.8, 2.3, 3.0, 6.0, 40.0});
        const double unit = random.of({1.0, 1.0, 1e-3, 1e25, 1e-25, 1e-38});
        const std::vector<float> x = drawn(random, count, character, unit);
        const Solver solver{phi, random.of({1e-3, 1e-5, 1e-6}), 32};
        check::where() = check::text("solver: case %d character %d count %zu phi %g unit %g", k, int(character), count,
                                     phi, unit);
        const Found found = solve(x, solver);
        const oracle::Values values(x.begin(), x.end());
        const double low = *std::min_element(values.begin(), values.end());
        const double high = *std::max_element(values.begin(), values.end()), got = found.median.exact;
        const double std = std::sqrt(oracle::variance_about(values, oracle::mean_of(values)));
        expect(found.passes <= solver.max_steps, "%d passes", found.passes);
        const double expected = oracle::median(values, phi);
        expect(std::fabs(got - expected) <= 1.01 * solver.rtol * std + 4e-7 * std::max(std::fabs(low), std::fabs(high)),
               "%.9g, expected %.9g", got, expected);
        if (found.passes == 0) continue;
        const Search &search = found.median.search;
        const double to = 1 / double(search.scale), slack = 4e-7 * std * to;
        expect(search.upper - search.lower <= solver.rtol, "bracket of %g", search.upper - search.lower);
        expect(oracle::between(values, phi, search.original(search.lower) * to - slack,
                               search.original(search.upper) * to + slack),
               "the bracket misses the root");
    }
}

// Zeros bend the residual; with their part known the search needs no more passes than without them.
void test_zeros() {
    Random random(3);
    for (const double phi : {1.25, 1.5, 1.75})
        for (const double share : {0.05, 0.3, 0.6, 0.9}) {
            check::where() = check::text("zeros: phi %g share %g", phi, share);
            const std::vector<float> x = draw::some<float>(
                3000, [&] { return random.uniform() < share ? 0.0 : std::fabs(random.normal()); });
            const Found found = solve(x, {phi, 1e-5, 32});
            const double expected = oracle::median(oracle::Values(x.begin(), x.end()), phi);
            expect(found.passes <= 8, "%d passes", found.passes);
            expect(std::fabs(found.median.exact - expected) <= 1e-5, "%.9g, expected %.9g", found.median.exact,
                   expected);
        }
}

void test_selection() {
    Random random(4);
    constexpr float top = std::numeric_limits<float>::max();
    for (int k = 0; k < 600; k++) {
        const std::size_t count = std::size_t(1 + random.below(random.of({6, 60, 600})));
        const auto character = draw::Character(random.below(draw::CHARACTERS));
        std::vector<float> x = drawn(random, count, character, random.of({1.0, 1e30, 1e-42}));
        if (random.one_in(3))
            for (float &value : x)
                if (random.one_in(3)) value = random.of({0.0f, -0.0f, top, -top, x[0], 1e-45f});
        check::where() = check::text("selection: case %d count %zu", k, count);
        const Found found = solve(x, {1.0, 1e-5, 1});
        expect(found.passes <= 10, "%d passes", found.passes);
        const double expected = oracle::middle_value(oracle::Values(x.begin(), x.end()));
        expect(found.median.exact == expected, "%.9g, exactly %.9g", found.median.exact, expected);
    }
}

// --- the plan --------------------------------------------------------------------------------------------------------

void test_plan() {
    check::where() = "plan";
    Random random(5);
    for (int k = 0; k < 300; k++) {
        const std::size_t groups = std::size_t(1 + random.below(6));
        std::vector<std::int64_t> offsets{0}, order;
        for (std::size_t g = 0; g < groups; g++) offsets.push_back(offsets.back() + 1 + random.below(40));
        order.resize(std::size_t(offsets.back()));
        std::iota(order.begin(), order.end(), 0);
        if (random.one_in(2)) std::reverse(order.begin(), order.end());
        const auto lambda = draw::some<float>(std::int64_t(groups), [&] { return random.of({0.0, 0.0, 1.0, 0.5}); });
        const auto positions = std::uint32_t(1 + random.below(random.of({3, 300, 5000})));
        const auto channels = std::uint32_t(1 + random.below(random.of({3, 2000})));
        const Plan all = plan(order, offsets, lambda, channels, positions);

        std::size_t rows = 0, sets = 0, parts = 0;
        for (int size = 0; size < SIZES; size++) {
            const Class &own = all.classes[size];
            for (std::uint32_t g = own.begin; g < own.begin + own.groups; g++) {
                const Group &group = all.groups[g];
                const std::uint64_t values = std::uint64_t(group.rows) * positions;
                expect(group.begin == std::int32_t(rows), "rows of a group begin at %d, not %zu", group.begin, rows);
                rows += std::size_t(group.rows);
                expect(std::uint32_t(group.rows) <= own.rows && group.parts <= own.parts, "the largest is larger");
                expect((size == 0) == (group.lambda == 1), "lambda %g in class %d", double(group.lambda), size);
                if (Size(size) != Size::LARGE) continue;
                expect(values > 32768 && group.set == sets && group.first == std::int64_t(parts), "places of a set");
                expect(std::uint64_t(group.parts) * group.part >= values &&
                           std::uint64_t(group.parts - 1) * group.part < values && group.part % 1024 == 0,
                       "%u parts of %u for %d", group.parts, group.part, int(values));
                sets += channels;
                parts += std::size_t(channels) * group.parts;
                // Alone it is cut as among others.
                std::vector<std::int64_t> own_rows(std::size_t(group.rows));
                std::iota(own_rows.begin(), own_rows.end(), 0);
                const Plan alone = plan(own_rows, {0, group.rows}, {group.lambda}, channels, positions);
                expect(alone.groups[0].parts == group.parts && alone.groups[0].part == group.part, "cut by neighbours");
            }
        }
        expect(rows == order.size() && sets == all.sets && parts == all.parts, "not all is planned for");
        expect(all.classes[0].groups <= 1, "%u groups of tracked rows", all.classes[0].groups);
        std::vector<std::int32_t> sorted = all.order;
        std::sort(sorted.begin(), sorted.end());
        for (std::size_t i = 0; i < sorted.size(); i++) expect(sorted[i] == std::int32_t(i), "row %zu is lost", i);
    }
    for (const std::int64_t memory : {49152, 101376, 166912, 232448})
        expect(limits_of(std::size_t(memory)).block * 4 + 4096 <= std::uint64_t(memory), "memory of %d", int(memory));
    try {
        plan({0}, {0, 1}, {0.0f}, 1u << 20, 1u << 20);
        expect(false, "2^40 values of a row are not refused");
    } catch (const std::length_error &) {
    }
}

}  // namespace

int main() {
    test_division();
    test_solver();
    test_zeros();
    test_selection();
    test_plan();
    return check::result();
}
