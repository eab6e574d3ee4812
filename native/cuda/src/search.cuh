// The certified search for one set's generalized median, for phi in (1, inf): the steps of native/src/median.cpp, which
// has the reasons, from the sums that a pass over the values gives.
//
// It works on z = (value * scale - center) / std, with center the mean rounded to float; y is always a float. A set
// that has stopped is not touched again.
#pragma once

#include "moments.cuh"

namespace augserve::cuda {

constexpr double PADDING = 0.4, PADDING_GROWTH = 4.0, NEAR_RATIO = 1.0 / 16;
constexpr double STEP_RATIO = 0.25, INITIAL_BRACKET = 1.001;
constexpr int PATIENCE = 3;
constexpr double LARGEST_PHI = 1e9;  // beyond it the median is the midrange up to rounding
constexpr std::uint32_t FEW = 8;     // so many values are summed in double

struct Solver {
    double phi, rtol;
    std::int32_t max_steps;
};

// What one pass found: a function with the sign of the residual, and where it would be 0 by what the pass knows.
struct Evaluation {
    double g, estimate;
};

AUGSERVE_ANYWHERE inline double power_of(double d, double p) {
    return p == 0.5 ? sqrt(d) : double(powf(float(d), float(p)));  // in float: faster, and near enough
}

// Where slope d + count d^p = size has its root, p < 1, from a guess.
AUGSERVE_ANYWHERE inline double distance_from_atom(double slope, double count, double p, double size, double d) {
    if (p == 0.5) {  // of a quadratic equation in the root of d
        const double root = 2 * size / (count + sqrt(count * count + 4 * slope * size));
        return root * root;
    }
    for (int k = 0; k < 8 && d > 1e-30; k++) {
        const double power = count * power_of(d, p);
        const double next = fmax(d - (slope * d + power - size) / (slope + p * power / d), 0.1 * d);
        if (fabs(next - d) <= 1e-2 * d) return next;
        d = next;
    }
    return d;
}

struct Search {
    Solver solver;
    double mean, std, low, high;  // of the values times the scale; low and high as z
    double lower, upper, estimate, sign, padding, last_step, width_then;
    double atom_count, atom;  // how many values are 0, and its z; 0 where they are counted with the others
    float scale, center, inverse, y;
    std::int32_t stalled, steps, running;

    // `found`: finite, of more than two values that are not all the same.
    AUGSERVE_ANYWHERE void begin(const Moments &found, std::uint64_t count, const Solver &with) {
        solver = with;
        scale = safe_scale(found.low, found.high);
        mean = found.mean * double(scale);
        std = sqrt(found.squares / double(count)) * double(scale);
        center = float(mean);
        inverse = float(1 / std);
        low = standard(double(found.low) * double(scale));
        high = standard(double(found.high) * double(scale));
        const double bound = solver.phi <= 2 ? INITIAL_BRACKET : double(INFINITY);
        lower = fmax(low, -bound);
        upper = fmin(high, bound);
        estimate = standard(mean);
        y = float(estimate);
        padding = PADDING * solver.rtol;
        last_step = double(INFINITY);
        width_then = upper - lower;
        sign = 0;
        stalled = steps = 0;
        const bool many = found.zeros >= 2 + count / 256;
        atom_count = solver.phi < 2 && count > FEW && many ? double(found.zeros) : 0;
        atom = standard(0);
        running = upper - lower > solver.rtol;
    }

    // From the sums over the values that are not the atom: w = |d|^(phi - 2) and w d, d = y - z; phi <= 2.
    AUGSERVE_ANYWHERE Evaluation newton(double weight, double residual) const {
        const double p = solver.phi - 1, slope = p * weight;
        if (atom_count == 0) return {residual, y - residual / slope};
        const double d = y - atom, at_atom = residual - slope * d;
        double next = atom;
        if (at_atom != 0) {
            const double size = fabs(at_atom);
            const double guess = d != 0 ? fabs(d) : power_of(size / atom_count, 1 / p);
            next -= copysign(distance_from_atom(slope, atom_count, p, size, guess), at_atom);
        }
        const double own = atom_count * power_of(fabs(d), p);
        return {residual + copysign(own, d), next};
    }

    // With a = |d| / reach, from the sums of a^(phi - 1) and of a^(phi - 2), left (d > 0) and right (d < 0); phi > 2.
    AUGSERVE_ANYWHERE Evaluation sides(double left, double right, double left_weight, double right_weight) const {
        const double p = solver.phi - 1, tiny = 1.1754943508222875e-38;
        // With so large an exponent that even the farthest value has no power left, it is the midrange.
        if (left < tiny && right < tiny) return {(y - low) - (high - y), low / 2 + high / 2};
        left = fmax(left, tiny);
        right = fmax(right, tiny);
        const double left_root = pow(left, 1 / p), right_root = pow(right, 1 / p), h = left_root - right_root;
        return {h, y - h * reach() / (left_root / left * left_weight + right_root / right * right_weight)};
    }

    AUGSERVE_ANYWHERE double reach() const { return fmax(fmax(y - low, high - y), 2.2250738585072014e-308); }

    AUGSERVE_ANYWHERE void advance(const Evaluation &found) {
        const double rtol = solver.rtol, g = found.g;
        steps++;
        if (g <= 0) lower = y;
        if (g >= 0) upper = y;
        const double side = double(g > 0) - double(g < 0);
        const double width = upper - lower, step = fabs(y - found.estimate);
        const double kept = step <= NEAR_RATIO * last_step ? padding : padding * PADDING_GROWTH;
        padding = side == sign ? kept : PADDING * rtol;
        const bool halved = width <= 0.5 * width_then;
        stalled = halved || step <= STEP_RATIO * last_step ? 0 : stalled + 1;
        const double pushed = found.estimate - side * padding, middle = 0.5 * (lower + upper);
        const int left = solver.max_steps - steps - 1;
        const bool last_call = width >= ldexp(rtol, left < 0 ? 0 : left > 62 ? 62 : left);
        const bool newton = pushed > lower && pushed < upper && stalled < PATIENCE && !last_call;
        const float next = float(newton ? pushed : middle);
        y = next > lower && next < upper ? next : float(middle);
        const bool between = y > lower && y < upper;  // else no float lies there
        running = width > rtol && steps < solver.max_steps && between;
        if (!newton) stalled = 0;
        if (halved) width_then = width;
        estimate = found.estimate;
        sign = side;
        last_step = step;
    }

    // In units of the values times the scale, as are the ends of the bracket.
    AUGSERVE_ANYWHERE double value() const {
        return original(estimate > lower && estimate < upper ? estimate : 0.5 * (lower + upper));
    }
    AUGSERVE_ANYWHERE double original(double z) const {
        return center + fmin(fmax(z, low), high) * std;
    }

    AUGSERVE_ANYWHERE double standard(double value) const { return (value - center) / std; }
};

}  // namespace augserve::cuda
