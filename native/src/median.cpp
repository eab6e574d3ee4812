// One channel's median. Each pass evaluates at y the residual g, whose sign moves one end of the bracket to y, and
// Newton's estimate; the next y is that estimate pushed past the root by a padding that grows while the sign does
// not change; a bisection follows where Newton leaves the bracket, where three passes brought no progress, or where
// only bisections can still meet max_steps. The constants are those of augserve/norms/median/solve.py.
//
// The iteration works on z = (x - center) / std, with center the mean rounded to float, so that the difference is
// exact to a rounding; y is always a float.

#include "median.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "elementwise.hpp"
#include "passes.hpp"

namespace augserve {
namespace {

constexpr double PADDING = 0.4, PADDING_GROWTH = 4.0, STEP_RATIO = 0.25, INITIAL_BRACKET = 1.001;
constexpr int PATIENCE = 3;
constexpr double LARGEST_PHI = 1e9;  // beyond it the median is the midrange up to rounding
constexpr std::size_t SAMPLE = SAMPLE_SIZE / BLOCK;

// A function with the sign of the residual, and where it would be 0 by what one pass knows of it.
struct Evaluation {
    double g, estimate;
};

// Many values that are the same, for phi < 2: the residual bends sharply there, as count * sgn(y - z) |y - z|^(phi - 1),
// and Newton's step, which takes it for straight, jumps to and fro. Their part is known: it is left out of the sums
// and put into the model instead. Activations have such a value, 0.
struct Atom {
    double count, z;
    float value;
};
constexpr Atom NO_ATOM{0, 0, std::numeric_limits<float>::max()};

double power_of(double d, double p) {
    return p == 0.5 ? std::sqrt(d) : double(std::pow(float(d), float(p)));  // in float: faster, and near enough
}

// Where slope d + count d^p = size has its root.
double distance_from_atom(double slope, double count, double p, double size) {
    if (p == 0.5) {  // of a quadratic equation in the root of d
        const double root = 2 * size / (count + std::sqrt(count * count + 4 * slope * size));
        return root * root;
    }
    double d = power_of(size / count, 1 / p);
    if (slope > 0) d = std::min(d, size / slope);
    for (int k = 0; k < 6 && d > 1e-30; k++) {
        const double power = count * power_of(d, p);
        const double next = std::max(d - (slope * d + power - size) / (slope + p * power / d), 0.1 * d);
        if (std::fabs(next - d) <= 1e-3 * d) return next;
        d = next;
    }
    return d;
}

Evaluation evaluate_up_to_2(const Values &values, Standard z, float y, double phi, const Atom &atom) {
    double weight = 0, residual = 0;
    for (std::size_t b = 0; b < values.blocks(); b++) {
        const float *block = values.block(b);
        const std::size_t n = values.size(b);
        const NewtonSums sums = phi == 1.5 ? newton_sums_root(block, n, z, y, atom.value)
                                           : newton_sums(block, n, z, y, atom.value, float(phi - 2));
        weight += sums.weight;
        residual += sums.residual;
    }
    const double slope = (phi - 1) * weight;
    if (atom.count == 0) return {residual, y - residual / slope};
    const double d = y - atom.z, at_atom = residual - slope * d;
    const double estimate =
        at_atom == 0 ? atom.z
                     : atom.z - std::copysign(distance_from_atom(slope, atom.count, phi - 1, std::fabs(at_atom)), at_atom);
    const double side = d > 0 ? 1 : d < 0 ? -1 : 0;
    return {residual + side * atom.count * power_of(std::fabs(d), phi - 1), estimate};
}

// For phi > 2 the root is also that of h(y) = (sum_left a^p)^(1/p) - (sum_right a^p)^(1/p), p = phi - 1, which is
// nearly linear far away.
Evaluation evaluate_above_2(const Values &values, Standard z, float y, double phi, double low, double high) {
    const double p = phi - 1, from_low = y - low, to_high = high - y;
    const double reach = std::max({from_low, to_high, std::numeric_limits<double>::min()});
    double left = 0, right = 0, left_weight = 0, right_weight = 0;
    for (std::size_t b = 0; b < values.blocks(); b++) {
        const SideSums sums = side_sums(values.block(b), values.size(b), z, y, float(1 / reach), float(p));
        left += sums.left;
        right += sums.right;
        left_weight += sums.left_weight;
        right_weight += sums.right_weight;
    }
    const double tiny = std::numeric_limits<float>::min();
    // With so large an exponent that even the farthest value has no power left, it is the midrange.
    if (left < tiny && right < tiny) return {from_low - to_high, low / 2 + high / 2};
    left = std::max(left, tiny);
    right = std::max(right, tiny);
    const double left_root = std::pow(left, 1 / p), right_root = std::pow(right, 1 / p);
    const double h = left_root - right_root;
    return {h, y - h * reach / (left_root / left * left_weight + right_root / right * right_weight)};
}

struct Bracket {
    double lower, upper, estimate;
    int steps;
};

Bracket iterate(const Values &values, Standard z, double low, double high, double start, const Atom &atom,
                Solver solver) {
    const double phi = solver.phi, rtol = solver.rtol;
    const double bound = phi <= 2 ? INITIAL_BRACKET : std::numeric_limits<double>::infinity();
    double lower = std::max(low, -bound), upper = std::min(high, bound);
    float y = float(start);
    double estimate = y, sign = 0, padding = PADDING * rtol, last_step = std::numeric_limits<double>::infinity();
    double width_then = upper - lower;
    int stalled = 0, steps = 0;
    while (upper - lower > rtol && steps < solver.max_steps) {
        const double at = y;
        const Evaluation found = phi <= 2 ? evaluate_up_to_2(values, z, y, phi, atom)
                                          : evaluate_above_2(values, z, y, phi, low, high);
        steps++;
        if (found.g <= 0) lower = at;
        if (found.g >= 0) upper = at;
        const double side = found.g > 0 ? 1 : found.g < 0 ? -1 : 0;
        padding = side == sign ? padding * PADDING_GROWTH : PADDING * rtol;
        const double width = upper - lower;
        const bool halved = width <= 0.5 * width_then;
        const double step = std::fabs(at - found.estimate);
        const bool progress = halved || step <= STEP_RATIO * last_step;
        stalled = progress ? 0 : stalled + 1;
        estimate = found.estimate;
        const double pushed = estimate - side * padding;
        const int left = solver.max_steps - steps - 1;
        const bool last_call = left < 62 && width >= rtol * double(std::int64_t(1) << std::max(left, 0));
        const bool newton = pushed > lower && pushed < upper && stalled < PATIENCE && !last_call;
        const double next = newton ? pushed : 0.5 * (lower + upper);
        if (!newton) stalled = 0;
        if (halved) width_then = width;
        sign = side;
        last_step = step;
        y = float(next);
        if (!(y > lower && y < upper)) y = float(0.5 * (lower + upper));
        if (!(y > lower && y < upper)) break;  // no float lies between
    }
    return {lower, upper, estimate, steps};
}

std::int32_t float_key(float value) {
    const float positive = value == 0.0f ? 0.0f : value;  // not -0
    std::int32_t bits;
    static_assert(sizeof bits == sizeof positive, "float has 32 bits");
    std::copy_n(reinterpret_cast<const char *>(&positive), sizeof bits, reinterpret_cast<char *>(&bits));
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}

float key_float(std::int32_t key) {
    const std::int32_t bits = key < 0 ? key ^ 0x7fffffff : key;
    float value;
    std::copy_n(reinterpret_cast<const char *>(&bits), sizeof value, reinterpret_cast<char *>(&value));
    return value;
}

// The value that exactly `rank` of the sorted values come before, by bisecting the line of floats.
float order_statistic(const Values &values, float low, float high, std::size_t rank) {
    std::int64_t from = float_key(low) - std::int64_t(low <= 0), to = float_key(high);  // -0 comes just before 0
    while (from < to) {
        const std::int64_t middle = from + (to - from) / 2;
        std::size_t at_most = 0;
        for (std::size_t b = 0; b < values.blocks(); b++)
            at_most += count_at_most(values.block(b), values.size(b), std::int32_t(middle));
        if (at_most > rank)
            to = middle;
        else
            from = middle + 1;
    }
    return key_float(std::int32_t(to));
}

}  // namespace

const float *Values::load(std::size_t index) const {
    const float *values = view->load(*plan, channel, index, buffer);
    if (scale == 1.0f) return values;
    if (values != buffer) std::copy_n(values, plan->size(index), buffer);
    scale_block(buffer, plan->size(index), scale);
    return buffer;
}

void Values::multiply(float by) {
    scale *= by;
    if (copied) scale_block(copied, plan->count(), by);
}

Moments moments(const Values &values) {
    double count = 0, mean = 0, squares = 0;
    float low = std::numeric_limits<float>::infinity(), high = -low;
    std::size_t zeros = 0;
    bool finite = true;
    for (std::size_t b = 0; b < values.blocks(); b++) {
        const double n = double(values.size(b));
        const BlockMoments block = block_moments(values.block(b), values.size(b));
        finite = finite && block.magnitude < 0x7f800000u;
        zeros += block.zeros;
        low = std::min(low, block.low);
        high = std::max(high, block.high);
        // Chan, Golub & LeVeque 1979: means and squared deviations of two sets together.
        const double block_mean = double(block.sum) / n, delta = block_mean - mean, total = count + n;
        mean += delta * (n / total);
        squares += double(block.squares) + delta * delta * (count * n / total);
        count = total;
    }
    if (low == high) return {low, 0, low, high, zeros, finite};  // what rounding of the sums leaves is not of the data
    if (low == high) mean = low, squares = 0;  // exactly
    return {mean, squares / count, low, high, zeros, finite};
}

float safe_scale(float low, float high) {
    const float largest = std::max(std::fabs(low), std::fabs(high));
    if (largest == 0.0f || (largest < 1e15f && largest > 1e-15f)) return 1.0f;
    int exponent;
    std::frexp(largest, &exponent);
    return float(std::ldexp(1.0, std::clamp(-exponent, -120, 120)));
}

double sampled_start(const Values &values, Solver solver, float *sample) {
    const std::size_t every = std::max<std::size_t>(1, values.blocks() / SAMPLE);
    std::size_t size = 0;
    for (std::size_t b = 0; b < values.blocks() && size + BLOCK <= SAMPLE_SIZE; b += every) {
        std::copy_n(values.block(b), values.size(b), sample + size);
        size += values.size(b);
    }
    const Plan plan(1, size, nullptr);
    const Values few{&plan, sample, nullptr, 0, nullptr, values.scale};
    const Moments found = moments(few);
    return found.finite ? median(few, found, {solver.phi, 1e-2, 16}, std::nan("")).value : std::nan("");
}

Median median(const Values &values, const Moments &found, Solver solver, double start) {
    const auto exact = [](double value) { return Median{value, value, value, 0, CONVERGED}; };
    const std::size_t count = values.plan->count();
    if (count <= 2 || solver.phi > LARGEST_PHI) return exact(double(found.low) / 2 + double(found.high) / 2);
    if (solver.phi == 2) return exact(found.mean);
    if (solver.phi == 1) {
        const double lower = order_statistic(values, found.low, found.high, (count - 1) / 2);
        if (count % 2) return exact(lower);
        return exact(lower / 2 + double(order_statistic(values, found.low, found.high, count / 2)) / 2);
    }
    const double std = std::sqrt(found.var);
    if (!(found.var > 0) || found.low == found.high) return exact(found.mean);
    const float center = float(found.mean);
    const Standard z{center, float(1 / std)};
    const auto standard = [&](double value) { return (value - center) / std; };
    const double low = standard(found.low), high = standard(found.high);
    double first = standard(std::isnan(start) ? found.mean : start);
    if (!(first > low && first < high) || (solver.phi <= 2 && std::fabs(first) >= INITIAL_BRACKET))
        first = standard(found.mean);
    const bool many_zeros = solver.phi < 2 && found.zeros >= 2 + count / 256;
    const Atom atom = many_zeros ? Atom{double(found.zeros), standard(0), 0.0f} : NO_ATOM;
    const Bracket bracket = iterate(values, z, low, high, first, atom, solver);
    const bool inside = bracket.estimate > bracket.lower && bracket.estimate < bracket.upper;
    const double root = inside ? bracket.estimate : 0.5 * (bracket.lower + bracket.upper);
    const auto original = [&](double value) {
        return std::clamp(center + value * std, double(found.low), double(found.high));
    };
    const bool narrow = bracket.upper - bracket.lower <= solver.rtol;
    return {original(root), original(bracket.lower), original(bracket.upper), bracket.steps,
            narrow ? CONVERGED : MAX_STEPS};
}

}  // namespace augserve
