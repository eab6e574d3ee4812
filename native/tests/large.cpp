// Channels of more values than the kernels keep a copy of: every pass loads them from where they lie, and the solver
// starts from a sample. The same values in three layouts give the same bits, and what the definitions say.

#include <array>

#include "check.hpp"
#include "draw.hpp"
#include "oracle.hpp"

namespace {

using check::expect;
using storage::Shape;
using storage::Tensor;

constexpr double EPS = 1.1920928955078125e-7, RTOL = 1e-4;
constexpr std::int64_t KEPT = std::int64_t(1) << 21;  // values that are kept at most

struct Result {
    Tensor y;
    std::vector<float> center, spread, first, second;
    std::vector<std::int64_t> steps;
};

Result forward(const Tensor &x, augserve_kind kind, double exponent, std::int64_t threads,
               const std::vector<std::int64_t> &order = {}, const std::vector<std::int64_t> &offsets = {}) {
    const std::size_t groups = order.empty() ? 1 : offsets.size() - 1, n = groups * std::size_t(x.shape.channels);
    const std::vector<float> blank(n);
    Result r{Tensor(x.shape, x.layout, x.dtype), blank, blank, blank, blank, std::vector<std::int64_t>(n)};
    augserve_forward f{};
    f.kind = kind, f.dtype = x.dtype, f.threads = threads;
    f.rows = x.shape.rows, f.channels = x.shape.channels, f.positions = x.shape.positions;
    f.x_layout = f.y_layout = x.layout, f.x = x.data(), f.y = r.y.data();
    f.exponent = exponent, f.eps = 1e-5, f.rtol = RTOL, f.max_steps = 32;
    f.groups = std::int64_t(groups);
    if (!order.empty()) f.order = order.data(), f.offsets = offsets.data();
    f.center = r.center.data(), f.spread = r.spread.data();
    f.first = r.first.data(), f.second = r.second.data(), f.steps = r.steps.data();
    const int code = augserve_run_forward(&f, nullptr);
    expect(code == 0, "forward returned %d", code);
    return r;
}

struct Gradient {
    Tensor dx;
    std::vector<float> dweight, dbias;
};

Gradient backward(const Tensor &x, const Tensor &dy, const Result &r, augserve_kind kind, double exponent,
                  std::int64_t threads) {
    const std::vector<float> blank(r.center.size());
    Gradient g{Tensor(x.shape, x.layout, x.dtype), blank, blank};
    augserve_backward b{};
    b.kind = kind, b.dtype = x.dtype, b.threads = threads;
    b.rows = x.shape.rows, b.channels = x.shape.channels, b.positions = x.shape.positions;
    b.x_layout = b.dx_layout = x.layout, b.dy_layout = dy.layout;
    b.x = x.data(), b.dy = dy.data(), b.dx = g.dx.data(), b.exponent = exponent, b.eps = 1e-5;
    b.center = r.center.data(), b.spread = r.spread.data(), b.first = r.first.data(), b.second = r.second.data();
    b.dweight = g.dweight.data(), b.dbias = g.dbias.data();
    const int code = augserve_run_backward(&b, nullptr);
    expect(code == 0, "backward returned %d", code);
    return g;
}

// Channel 0 of normal values, channel 1 half of zeros.
void fill(Tensor &x, std::uint32_t seed) {
    for (std::int64_t c = 0; c < x.shape.channels; c++) {
        draw::Random random(seed + std::uint32_t(c));
        for (std::int64_t n = 0; n < x.shape.rows; n++)
            for (std::int64_t l = 0; l < x.shape.positions; l++)
                x.set(n, c, l, c == 0 ? random.normal() + 1 : std::max(random.normal(), 0.0));
    }
}

oracle::Values values_of(const Tensor &x, std::int64_t c) {
    oracle::Values values;
    for (std::int64_t n = 0; n < x.shape.rows; n++)
        for (std::int64_t l = 0; l < x.shape.positions; l++) values.push_back(x.get(n, c, l));
    return values;
}

bool same_values(const Tensor &a, const Tensor &b) {
    for (std::int64_t n = 0; n < a.shape.rows; n++)
        for (std::int64_t c = 0; c < a.shape.channels; c++)
            for (std::int64_t l = 0; l < a.shape.positions; l++)
                if (!storage::same(a.get(n, c, l), b.get(n, c, l))) return false;
    return true;
}

// Errors as in forward.cpp: the certificate's width, and float's EPS times a few.
void check_forward(const Tensor &x, const Result &r, double phi) {
    for (std::int64_t c = 0; c < x.shape.channels; c++) {
        const auto at = std::size_t(c);
        const oracle::Values values = values_of(x, c);
        const double mean = oracle::mean_of(values), std = std::sqrt(oracle::variance_about(values, mean));
        const double center = r.center[at], tolerance = RTOL * std + 40 * EPS * std;
        const bool right = phi == 1   ? center == float(oracle::middle_value(values))
                           : phi == 2 ? std::fabs(center - mean) <= 8 * EPS
                                      : oracle::between(values, phi, center - tolerance, center + tolerance);
        expect(right, "channel %d: center %.9g is not within the tolerance", int(c), center);
        expect(std::fabs(r.spread[at] - oracle::variance_about(values, center)) <= 32 * EPS, "variance %.9g",
               r.spread[at]);
        if (phi == 1.5) expect(r.steps[at] <= 4, "%d steps from a sampled start", int(r.steps[at]));
        const double scale = 1 / std::sqrt(double(r.spread[at]) + 1e-5);
        int wrong = 0;
        for (std::int64_t n = 0; n < x.shape.rows; n++)
            for (std::int64_t l = 0; l < x.shape.positions; l++) {
                const double expected = scale * (x.get(n, c, l) - center);
                const double unit = x.dtype == AUGSERVE_FLOAT32 ? 0 : x.dtype == AUGSERVE_FLOAT16 ? 0x1p-11 : 0x1p-8;
                const double error = 4 * EPS * (2 + std::fabs(expected)) + 1.01 * unit * std::fabs(expected) + 1e-7;
                wrong += !(std::fabs(r.y.get(n, c, l) - expected) <= error);
            }
        expect(wrong == 0, "%d values of y are off", wrong);
    }
}

void check_backward(const Tensor &x, const Tensor &dy, const Result &r, const Gradient &g, augserve_kind kind,
                    double exponent) {
    for (std::int64_t c = 0; c < x.shape.channels; c++) {
        const auto at = std::size_t(c);
        const oracle::Gradient expected =
            oracle::gradient(values_of(x, c), values_of(dy, c), kind, exponent, 1e-5, 1,
                             {r.center[at], r.spread[at], r.first[at], r.second[at]},
                             1e-14 * std::sqrt(double(r.spread[at])));
        int wrong = 0;
        for (std::int64_t n = 0, i = 0; n < x.shape.rows; n++)
            for (std::int64_t l = 0; l < x.shape.positions; l++, i++) {
                const double error = std::fabs(g.dx.get(n, c, l) - expected.dx[std::size_t(i)]);
                wrong += !(error <= 40 * EPS * expected.size[std::size_t(i)]);
            }
        expect(wrong == 0, "%d values of dx are off", wrong);
        expect(std::fabs(g.dweight[at] - expected.dweight) <= 16 * EPS * expected.weight_size, "dweight %.9g",
               g.dweight[at]);
        expect(std::fabs(g.dbias[at] - expected.dbias) <= 16 * EPS * expected.bias_size, "dbias %.9g", g.dbias[at]);
    }
}

void check_shape(Shape s, std::int64_t dtype, double phi) {
    check::where() = check::text("(%d, %d, %d), dtype %d, phi %g", int(s.rows), int(s.channels), int(s.positions),
                                 int(dtype), phi);
    const std::array<augserve_layout, 3> layouts = {{{s.channels * s.positions, s.positions, 1},
                                                     {s.channels * s.positions, 1, s.channels},
                                                     {s.positions, s.rows * s.positions, 1}}};
    Tensor x(s, layouts[0], dtype), dy(s, layouts[1], dtype);
    fill(x, 1);
    fill(dy, 100);
    const Result r = forward(x, AUGSERVE_AUG, phi, 2);
    check_forward(x, r, phi);
    const bool differentiable = phi > 1;
    const Gradient g = differentiable ? backward(x, dy, r, AUGSERVE_AUG, phi, 1)
                                      : Gradient{Tensor(s, layouts[0], dtype), {}, {}};
    if (differentiable && dtype == AUGSERVE_FLOAT32) check_backward(x, dy, r, g, AUGSERVE_AUG, phi);
    for (std::size_t k = 1; k < layouts.size(); k++) {
        Tensor other(s, layouts[k], dtype);
        fill(other, 1);
        const Result again = forward(other, AUGSERVE_AUG, phi, 1);
        expect(again.center == r.center && again.spread == r.spread && again.steps == r.steps,
               "layout %d: other statistics", int(k));
        expect(same_values(again.y, r.y), "layout %d: other values", int(k));
        if (differentiable)
            expect(same_values(backward(other, dy, again, AUGSERVE_AUG, phi, 2).dx, g.dx),
                   "layout %d: other gradients", int(k));
    }
}

// A channel that is not finite, and one of a large and a small group, beside others.
void check_confinement() {
    check::where() = "NaN in channel 0; two groups";
    const Shape s{KEPT / 4096 + 2, 2, 4096};
    Tensor x(s, storage::dense(s), AUGSERVE_FLOAT32);
    fill(x, 5);
    std::vector<std::int64_t> order;
    for (std::int64_t n = s.rows; n-- > 0;) order.push_back(n);
    const Result all = forward(x, AUGSERVE_ROBUST, 0.2, 2);
    const Result reversed = forward(x, AUGSERVE_ROBUST, 0.2, 1, order, {0, s.rows});
    expect(all.spread == reversed.spread && std::fabs(all.center[0] - reversed.center[0]) <= 8 * EPS,
           "rows in reverse");
    const Result split = forward(x, AUGSERVE_AUG, 1.5, 2, order, {0, 1, s.rows});
    x.set(s.rows / 2, 0, 77, std::nan(""));
    const Result broken = forward(x, AUGSERVE_AUG, 1.5, 2, order, {0, 1, s.rows});
    for (const std::size_t at : {0, 1, 3})
        expect(storage::same(split.center[at], broken.center[at]) && storage::same(split.spread[at], broken.spread[at]),
               "NaN in a group's channel has changed the statistics of another: %zu", at);
    expect(std::isnan(broken.center[2]) && std::isnan(broken.y.get(3, 0, 5)), "no NaN in the channel that has one");
    expect(!std::isnan(broken.y.get(s.rows - 1, 0, 5)) && !std::isnan(broken.y.get(3, 1, 5)), "NaN elsewhere");
}

}  // namespace

int main() {
    const Shape images{3, 2, 700001}, packed{KEPT / 64 + 3, 2, 64}, single{KEPT + 5, 2, 1};
    check_shape(images, AUGSERVE_FLOAT32, 1.5);
    check_shape(packed, AUGSERVE_FLOAT32, 1.5);
    check_shape(single, AUGSERVE_FLOAT32, 1.75);
    check_shape(packed, AUGSERVE_BFLOAT16, 1.5);
    check_shape({2, 1, KEPT / 2 + 1}, AUGSERVE_FLOAT16, 3);
    check_shape({2, 1, KEPT / 2 + 1}, AUGSERVE_FLOAT32, 1);
    check_shape({3, 1, KEPT / 3 + 1}, AUGSERVE_FLOAT32, 2);
    check_confinement();
    return check::result();
}
