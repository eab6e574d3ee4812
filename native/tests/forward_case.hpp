// A forward pass of the fuzzer: what is drawn, how it is run, and what comes out.
#pragma once

#include <algorithm>
#include <string>

#include "check.hpp"
#include "draw.hpp"

namespace forward_case {

using draw::Random;
using storage::Tensor;

constexpr int ENOUGH_STEPS = 32;  // with which the solver always reaches rtol

struct Case {
    storage::Shape shape;
    augserve_kind kind;
    double exponent, eps, rtol;
    std::int64_t max_steps, dtype, y_off;
    augserve_layout y_layout;
    std::vector<float> weight, bias, exponents, start, tracked, running_center, running_spread;  // empty for NULL
    std::vector<std::int64_t> order, offsets;
    double momentum, unbiased;
    std::vector<float> moving_center, moving_spread;  // as they are before
    const Tensor *residual = nullptr;                 // in the layout of y
    bool relu = false;

    std::int64_t groups() const { return order.empty() ? 1 : std::int64_t(offsets.size()) - 1; }
    double phi(std::int64_t c) const {
        return kind == AUGSERVE_AUG && !exponents.empty() ? double(exponents[std::size_t(c)]) : exponent;
    }
    double lambda(std::int64_t g) const { return tracked.empty() ? 0 : double(tracked[std::size_t(g)]); }
    std::vector<std::int64_t> rows_of(std::int64_t g) const {
        std::vector<std::int64_t> rows;
        const std::int64_t from = order.empty() ? 0 : offsets[std::size_t(g)];
        const std::int64_t to = order.empty() ? shape.rows : offsets[std::size_t(g) + 1];
        for (std::int64_t i = from; i < to; i++) rows.push_back(order.empty() ? i : order[std::size_t(i)]);
        return rows;
    }
};

struct Result {
    Tensor y;
    std::vector<float> center, spread, first, second;
    std::vector<std::int64_t> steps;
    std::vector<float> moving_center, moving_spread;
};

constexpr float UNWRITTEN = -12345.0f;

template <class T>
const T *pointer(const std::vector<T> &values) {
    return values.empty() ? nullptr : values.data();
}

// With `in_place` y goes where x is, laid out as y, and Result::y stays as it was made.
inline Result run(const Case &a, const Tensor &x, std::int64_t threads, const augserve_executor *executor,
                  bool noted = true, bool in_place = false) {
    const std::vector<float> blank(std::size_t(a.groups() * a.shape.channels), UNWRITTEN);
    Result r{Tensor(a.shape, a.y_layout, a.dtype, a.y_off), blank, blank, blank, blank,
             std::vector<std::int64_t>(blank.size(), -1), a.moving_center, a.moving_spread};
    augserve_forward f{};
    f.kind = a.kind, f.dtype = a.dtype, f.threads = threads;
    f.rows = a.shape.rows, f.channels = a.shape.channels, f.positions = a.shape.positions;
    f.x_layout = x.layout, f.y_layout = a.y_layout, f.x = x.data(), f.y = in_place ? x.data() : r.y.data();
    f.weight = pointer(a.weight), f.bias = pointer(a.bias);
    f.exponent = a.exponent, f.eps = a.eps, f.exponents = pointer(a.exponents);
    f.rtol = a.rtol, f.max_steps = a.max_steps, f.start = pointer(a.start);
    f.groups = a.groups(), f.order = pointer(a.order), f.offsets = pointer(a.offsets);
    f.tracked_weight = pointer(a.tracked);
    f.running_center = pointer(a.running_center), f.running_spread = pointer(a.running_spread);
    f.residual = a.residual ? a.residual->data() : nullptr, f.relu = a.relu;
    f.momentum = a.momentum, f.unbiased = a.unbiased;
    if (!a.moving_center.empty()) f.moving_center = r.moving_center.data(), f.moving_spread = r.moving_spread.data();
    if (noted) {
        f.center = r.center.data(), f.spread = r.spread.data();
        f.first = r.first.data(), f.second = r.second.data(), f.steps = r.steps.data();
    }
    const int code = augserve_run_forward(&f, executor);
    check::expect(code == 0, "forward returned %d: %s", code, augserve_message(code));
    return r;
}

// --- drawing -----------------------------------------------------------------------------------------------------

inline void draw_groups(Random &random, Case &a) {
    const std::int64_t rows = a.shape.rows, channels = a.shape.channels;
    if (random.one_in(2)) {
        a.order = draw::some<std::int64_t>(rows, [] { return 0; });
        for (std::int64_t i = 0; i < rows; i++) {
            const std::int64_t k = random.below(i + 1);
            a.order[std::size_t(i)] = a.order[std::size_t(k)];
            a.order[std::size_t(k)] = i;
        }
        a.offsets = draw::some<std::int64_t>(random.of<std::int64_t>({1, 2, 3, 7}),
                                             [&] { return random.below(rows + 1); });
        a.offsets.push_back(0);
        a.offsets.push_back(rows);
        std::sort(a.offsets.begin(), a.offsets.end());
    }
    if (random.one_in(2)) {
        a.tracked = draw::some<float>(a.groups(), [&] { return random.of({0.0, 1.0, 0.5, 0.1, 0.9}); });
        a.running_center = draw::some<float>(channels, [&] { return random.of({1.0, 1e4}) * random.normal(); });
        a.running_spread = draw::some<float>(channels, [&] { return random.uniform() + 0.1; });
    }
}

inline void draw_moving(Random &random, Case &a) {
    a.momentum = random.of({0.1, 1.0, 0.5});
    a.unbiased = 1 + random.uniform();
    a.moving_center = draw::some<float>(a.shape.channels, [&] { return random.normal(); });
    a.moving_spread = draw::some<float>(a.shape.channels, [&] { return random.uniform(); });
}

inline Case draw_case(Random &random, std::uint32_t seed) {
    Case a{};
    a.shape = draw::shape_of_case(random, seed);
    const std::int64_t channels = a.shape.channels;
    a.kind = augserve_kind(random.of({0, 0, 0, 1, 2}));
    a.dtype = random.of<std::int64_t>({0, 0, 1, 2});
    a.exponent = a.kind == AUGSERVE_AUG
                     ? random.of({1.0, 1.05, 1.1, 1.25, 1.5, 1.5, 1.5, 1.75, 2.0, 2.0, 3.0, 8.0, double(HUGE_VAL)})
                     : random.of({0.2, 0.2, 0.5, 1.0, 2.0});
    a.eps = random.of({1e-5, 1e-5, 1e-3, 1e-12});
    a.rtol = random.of({1e-4, 1e-4, 1e-3, 1e-5});
    a.max_steps = random.of<std::int64_t>({ENOUGH_STEPS, ENOUGH_STEPS, ENOUGH_STEPS, 100, 8, 3, 1});
    a.y_layout = draw::layout(random, a.shape, false);
    a.y_off = random.below(3);
    if (random.one_in(2)) a.weight = draw::some<float>(channels, [&] { return random.normal(); });
    if (random.one_in(2)) a.bias = draw::some<float>(channels, [&] { return random.normal(); });
    if (a.kind == AUGSERVE_AUG && random.one_in(4))
        a.exponents = draw::some<float>(channels, [&] {
            return random.of({1.0, 1.1, 1.5, 1.6, 2.0, 2.5, 3.0, 6.0, double(HUGE_VAL), 0.5, std::nan("")});
        });
    if (random.one_in(3))
        a.start = draw::some<float>(channels, [&] {
            return random.of({0.0, random.normal(), 1e30, -1e30, 1e-30, std::nan(""), double(HUGE_VAL)});
        });
    if (a.shape.values() > 0) draw_groups(random, a);
    if (a.shape.values() > 0 && a.order.empty() && a.lambda(0) == 0 && random.one_in(2)) draw_moving(random, a);
    return a;
}

inline std::string described(const Case &a, std::uint32_t seed, const Tensor &x) {
    return check::text("seed %u: kind %d dtype %d (%d, %d, %d) x (%d, %d, %d) y (%d, %d, %d) exponent %g%s rtol %g "
                       "steps %d groups %d%s",
                       seed, a.kind, int(a.dtype), int(a.shape.rows), int(a.shape.channels), int(a.shape.positions),
                       int(x.layout.row), int(x.layout.channel), int(x.layout.position), int(a.y_layout.row),
                       int(a.y_layout.channel), int(a.y_layout.position), a.exponent,
                       a.exponents.empty() ? "" : " per channel", a.rtol, int(a.max_steps), int(a.groups()),
                       a.tracked.empty() ? "" : " blended");
}

}  // namespace forward_case
