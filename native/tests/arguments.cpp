// Arguments that cannot be are refused with their code before anything is written; sizes of 0 are fine; what is known
// of the library is what its header says.

#include <cstddef>
#include <functional>

#include "check.hpp"
#include "storage.hpp"

namespace {

using check::expect;

enum Code { OK = 0, MISSING = -1, SIZE = -2, KIND = -3, EXPONENT = -4, SOLVER = -5, GROUPS = -6 };

constexpr std::int64_t ROWS = 4, CHANNELS = 2, POSITIONS = 3, VALUES = ROWS * CHANNELS * POSITIONS;
constexpr augserve_layout LAYOUT = {CHANNELS * POSITIONS, POSITIONS, 1};
constexpr double NOT_A_NUMBER = std::numeric_limits<double>::quiet_NaN();

// Room for all that a function writes, and whether it is as it was.
struct Outputs {
    using Floats = std::vector<float>;
    using Integers = std::vector<std::int64_t>;
    Floats values = Floats(VALUES, -7.0f);
    std::vector<Floats> floats = std::vector<Floats>(5, Floats(8, -7.0f));
    std::vector<Integers> integers = std::vector<Integers>(2, Integers(8, -7));

    bool untouched() const {
        const Outputs fresh;
        return values == fresh.values && floats == fresh.floats && integers == fresh.integers;
    }
};

struct Inputs {
    std::vector<float> x = std::vector<float>(VALUES), ones = std::vector<float>(8, 1.0f);
    std::vector<float> half = std::vector<float>(8, 0.5f);
    std::vector<std::int64_t> order = {2, 0, 3, 1}, offsets = {0, 3, 4};
    Inputs() {
        for (std::size_t k = 0; k < x.size(); k++) x[k] = float(k * k % 11);
    }
};

augserve_forward forward(const Inputs &in, Outputs &out) {
    augserve_forward f{};
    f.threads = 1, f.rows = ROWS, f.channels = CHANNELS, f.positions = POSITIONS;
    f.x_layout = f.y_layout = LAYOUT, f.x = in.x.data(), f.y = out.values.data();
    f.exponent = 1.5, f.eps = 1e-5, f.rtol = 1e-4, f.max_steps = 32;
    f.groups = 2, f.order = in.order.data(), f.offsets = in.offsets.data(), f.tracked_weight = in.half.data();
    f.running_center = f.running_spread = in.ones.data();
    f.center = out.floats[0].data(), f.spread = out.floats[1].data();
    f.first = out.floats[2].data(), f.second = out.floats[3].data(), f.steps = out.integers[0].data();
    return f;
}

augserve_backward backward(const Inputs &in, Outputs &out) {
    augserve_backward b{};
    b.threads = 1, b.rows = ROWS, b.channels = CHANNELS, b.positions = POSITIONS;
    b.x_layout = b.dy_layout = b.dx_layout = LAYOUT;
    b.x = b.dy = in.x.data(), b.dx = out.values.data(), b.exponent = 1.5, b.eps = 1e-5;
    b.center = b.spread = b.first = b.second = in.ones.data();
    b.dweight = out.floats[0].data(), b.dbias = out.floats[1].data(), b.dexponent = out.floats[2].data();
    return b;
}

augserve_median median(const Inputs &in, Outputs &out) {
    augserve_median m{};
    m.threads = 1, m.rows = ROWS, m.count = CHANNELS * POSITIONS, m.x = in.x.data();
    m.exponent = 1.5, m.rtol = 1e-4, m.max_steps = 32;
    m.value = out.floats[0].data(), m.lower = out.floats[1].data(), m.upper = out.floats[2].data();
    m.mean = out.floats[3].data(), m.var = out.floats[4].data();
    m.steps = out.integers[0].data(), m.status = out.integers[1].data();
    return m;
}

int run(const augserve_forward &f) { return augserve_run_forward(&f, nullptr); }
int run(const augserve_backward &b) { return augserve_run_backward(&b, nullptr); }
int run(const augserve_median &m) { return augserve_run_median(&m, nullptr); }

// The code of arguments that `change` has changed; on an error, and where nothing is to be done, nothing is written.
template <class Arguments>
void expect_code(const char *what, Arguments (*valid)(const Inputs &, Outputs &), int code, bool written,
                 const std::function<void(Arguments &)> &change) {
    check::where() = what;
    const Inputs in;
    Outputs out;
    Arguments arguments = valid(in, out);
    change(arguments);
    const int got = run(arguments);
    expect(got == code, "code %d, expected %d", got, code);
    expect(out.untouched() == !written, written ? "nothing written" : "something written");
}

void check_forward() {
    using F = augserve_forward;
    const auto refused = [](const char *what, int code, const std::function<void(F &)> &change) {
        expect_code<F>(what, forward, code, false, change);
    };
    const auto taken = [](const char *what, const std::function<void(F &)> &change) {
        expect_code<F>(what, forward, OK, true, change);
    };
    taken("forward", [](F &) {});
    taken("forward, one group", [](F &f) { f.order = nullptr, f.offsets = nullptr, f.groups = 0; });
    taken("forward, nothing but y", [](F &f) {
        f.center = f.spread = f.first = f.second = nullptr, f.steps = nullptr, f.tracked_weight = nullptr;
        f.running_center = f.running_spread = nullptr;
    });
    taken("forward, threads 0", [](F &f) { f.threads = 0; });
    taken("forward, phi inf", [](F &f) { f.exponent = HUGE_VAL; });
    taken("forward, no solver for a range", [](F &f) { f.kind = AUGSERVE_ROBUST, f.exponent = 0.2,
        f.rtol = f.max_steps = 0; });
    refused("forward, x NULL", MISSING, [](F &f) { f.x = nullptr; });
    refused("forward, y NULL", MISSING, [](F &f) { f.y = nullptr; });
    refused("forward, rows < 0", SIZE, [](F &f) { f.rows = -1; });
    refused("forward, channels < 0", SIZE, [](F &f) { f.channels = -1; });
    refused("forward, positions < 0", SIZE, [](F &f) { f.positions = INT64_MIN; });
    refused("forward, too many rows", SIZE, [](F &f) { f.rows = INT64_MAX; });
    refused("forward, too many values", SIZE, [](F &f) { f.rows = f.channels = f.positions = std::int64_t(1) << 40; });
    refused("forward, kind 3", KIND, [](F &f) { f.kind = 3; });
    refused("forward, kind -1", KIND, [](F &f) { f.kind = -1; });
    refused("forward, dtype 3", KIND, [](F &f) { f.dtype = 3; });
    refused("forward, dtype -1", KIND, [](F &f) { f.dtype = -1; });
    for (const double phi : {0.99, 0.0, -HUGE_VAL, NOT_A_NUMBER})
        refused("forward, phi < 1", EXPONENT, [=](F &f) { f.exponent = phi; });
    for (const double p : {0.0, -1.0, HUGE_VAL, NOT_A_NUMBER})
        refused("forward, p not positive", EXPONENT, [=](F &f) { f.kind = AUGSERVE_ROBUST_RANGE, f.exponent = p; });
    for (const double rtol : {0.0, -1e-4, NOT_A_NUMBER})
        refused("forward, rtol not positive", SOLVER, [=](F &f) { f.rtol = rtol; });
    refused("forward, max_steps 0", SOLVER, [](F &f) { f.max_steps = 0; });
    refused("forward, max_steps huge", SOLVER, [](F &f) { f.max_steps = INT64_MAX; });
    refused("forward, no offsets", GROUPS, [](F &f) { f.offsets = nullptr; });
    refused("forward, no groups", GROUPS, [](F &f) { f.groups = 0; });
    static const std::int64_t late[] = {1, 3, 4}, early[] = {0, 3, 3}, falling[] = {0, 5, 4};
    for (const std::int64_t *offsets : {late, early, falling})
        refused("forward, wrong offsets", GROUPS, [=](F &f) { f.offsets = offsets; });
    static const std::int64_t below[] = {2, -1, 3, 1}, beyond[] = {2, 0, 4, 1};
    for (const std::int64_t *order : {below, beyond})
        refused("forward, wrong rows", GROUPS, [=](F &f) { f.order = order; });
    static const float negative[] = {0, -0.1f}, large[] = {1.1f, 0}, nan[] = {0, float(NOT_A_NUMBER)}, zero[] = {0, 0};
    for (const float *lambda : {negative, large, nan})
        refused("forward, wrong lambda", GROUPS, [=](F &f) { f.tracked_weight = lambda; });
    refused("forward, nothing tracked", MISSING, [](F &f) { f.running_center = nullptr; });
    refused("forward, no tracked spread", MISSING, [](F &f) { f.running_spread = nullptr; });
    taken("forward, nothing tracked, lambda 0", [](F &f) { f.running_center = nullptr, f.tracked_weight = zero; });
}

void check_backward() {
    using B = augserve_backward;
    const auto refused = [](const char *what, int code, const std::function<void(B &)> &change) {
        expect_code<B>(what, backward, code, false, change);
    };
    expect_code<B>("backward", backward, OK, true, [](B &) {});
    expect_code<B>("backward, dx alone", backward, OK, true, [](B &b) { b.dweight = b.dbias = b.dexponent = nullptr; });
    refused("backward, x NULL", MISSING, [](B &b) { b.x = nullptr; });
    refused("backward, dy NULL", MISSING, [](B &b) { b.dy = nullptr; });
    refused("backward, dx NULL", MISSING, [](B &b) { b.dx = nullptr; });
    refused("backward, center NULL", MISSING, [](B &b) { b.center = nullptr; });
    refused("backward, spread NULL", MISSING, [](B &b) { b.spread = nullptr; });
    refused("backward, first NULL", MISSING, [](B &b) { b.first = nullptr; });
    refused("backward, second NULL", MISSING, [](B &b) { b.second = nullptr; });
    refused("backward, rows < 0", SIZE, [](B &b) { b.rows = -1; });
    refused("backward, too many values", SIZE, [](B &b) { b.rows = b.channels = b.positions = std::int64_t(1) << 40; });
    refused("backward, kind 3", KIND, [](B &b) { b.kind = 3; });
    refused("backward, dtype 3", KIND, [](B &b) { b.dtype = 3; });
    for (const double phi : {1.0, 0.5, 1e10, HUGE_VAL, NOT_A_NUMBER})
        refused("backward, phi", EXPONENT, [=](B &b) { b.exponent = phi; });
    refused("backward, p 0", EXPONENT, [](B &b) { b.kind = AUGSERVE_ROBUST, b.exponent = 0; });
}

void check_median() {
    using M = augserve_median;
    const auto refused = [](const char *what, int code, const std::function<void(M &)> &change) {
        expect_code<M>(what, median, code, false, change);
    };
    expect_code<M>("median", median, OK, true, [](M &) {});
    expect_code<M>("median, no rows", median, OK, false, [](M &m) { m.rows = 0, m.x = nullptr; });
    refused("median of nothing", SIZE, [](M &m) { m.count = 0; });
    refused("median, rows < 0", SIZE, [](M &m) { m.rows = -1; });
    refused("median, count < 0", SIZE, [](M &m) { m.count = -1; });
    refused("median, too many values", SIZE, [](M &m) { m.rows = m.count = std::int64_t(1) << 40; });
    refused("median, phi", EXPONENT, [](M &m) { m.exponent = 0.9; });
    refused("median, phi NaN", EXPONENT, [](M &m) { m.exponent = NOT_A_NUMBER; });
    refused("median, rtol", SOLVER, [](M &m) { m.rtol = 0; });
    refused("median, max_steps", SOLVER, [](M &m) { m.max_steps = 0; });
    for (float *augserve_median::*output : {&M::value, &M::lower, &M::upper, &M::mean, &M::var})
        refused("median, an output NULL", MISSING, [=](M &m) { m.*output = nullptr; });
    for (std::int64_t *augserve_median::*output : {&M::steps, &M::status})
        refused("median, an output NULL", MISSING, [=](M &m) { m.*output = nullptr; });
    refused("median, x NULL", MISSING, [](M &m) { m.x = nullptr; });
}

// Tensors without values need no memory, all else is checked as ever; statistics of nothing are NaN.
void check_empty() {
    using B = augserve_backward;
    using F = augserve_forward;
    const auto no_rows = [](auto &a) { a.rows = 0, a.x = nullptr; };
    const auto no_positions = [](auto &a) { a.positions = 0, a.x = nullptr; };
    for (const std::int64_t kind : {AUGSERVE_AUG, AUGSERVE_ROBUST, AUGSERVE_ROBUST_RANGE})
        for (const bool rows : {false, true}) {
            check::where() = check::text("forward, kind %d, no %s", int(kind), rows ? "rows" : "positions");
            const Inputs in;
            Outputs out;
            augserve_forward f = forward(in, out);
            f.kind = kind, f.order = nullptr, f.tracked_weight = nullptr, f.y = nullptr;
            rows ? no_rows(f) : no_positions(f);
            expect(run(f) == OK && out.values == Outputs().values, "refused, or y written");
            for (std::size_t c = 0; c < CHANNELS; c++)
                expect(std::isnan(out.floats[0][c]) && std::isnan(out.floats[1][c]), "statistics of nothing: %g, %g",
                       out.floats[0][c], out.floats[1][c]);
            augserve_backward b = backward(in, out);
            b.kind = kind;
            rows ? no_rows(b) : no_positions(b);
            expect(run(b) == OK && out.values == Outputs().values, "backward refused, or dx written");
        }
    expect_code<F>("forward, no channels", forward, OK, false, [](F &f) { f.channels = 0; });
    expect_code<B>("backward, no channels", backward, OK, false, [](B &b) { b.channels = 0; });
    expect_code<B>("backward, no rows and no center", backward, MISSING, false,
                   [=](B &b) { no_rows(b), b.center = nullptr; });
    expect_code<F>("forward, no positions and no offsets", forward, GROUPS, false,
                   [=](F &f) { no_positions(f), f.offsets = nullptr; });
    expect_code<F>("forward, no positions and nothing tracked", forward, MISSING, false,
                   [=](F &f) { no_positions(f), f.running_center = nullptr; });
}

void check_library() {
    check::where() = "library";
    expect(augserve_abi() == AUGSERVE_ABI, "ABI %d, the header says %d", int(augserve_abi()), AUGSERVE_ABI);
    for (int code = -20; code <= 20; code++) {
        const char *message = augserve_message(code);
        expect(message && *message, "no message of code %d", code);
    }
    const std::string set = augserve_instruction_set();
    expect(set == "avx512" || set == "avx2" || set == "baseline", "instruction set %s", set.c_str());
    expect(augserve_run_forward(nullptr, nullptr) == MISSING, "no arguments");
    expect(augserve_run_backward(nullptr, nullptr) == MISSING, "no arguments");
    expect(augserve_run_median(nullptr, nullptr) == MISSING, "no arguments");
    const Inputs in;
    Outputs out;
    const augserve_executor empty{};
    const augserve_forward arguments = forward(in, out);
    expect(augserve_run_forward(&arguments, &empty) == MISSING && out.untouched(), "an executor without a function");
}

// Every field is 8 bytes wide, so that callers in other languages can lay the structs out by their names alone.
void check_structs() {
    check::where() = "structs";
    expect(offsetof(augserve_forward, running_spread) - offsetof(augserve_forward, kind) == 27 * 8,
           "forward: running_spread");
    expect(offsetof(augserve_backward, dexponent) - offsetof(augserve_backward, kind) == 28 * 8, "backward: dexponent");
    expect(offsetof(augserve_median, status) - offsetof(augserve_median, threads) == 15 * 8, "median: status");
    for (const std::size_t size : {sizeof(augserve_layout), sizeof(augserve_forward), sizeof(augserve_backward)})
        expect(size % 8 == 0, "a struct of %zu bytes", size);
}

}  // namespace

int main() {
    check_library();
    check_structs();
    check_forward();
    check_backward();
    check_median();
    check_empty();
    return check::result();
}
