// The search for one channel's median. Each pass evaluates at y the residual g, whose sign moves one end of the bracket
// to y, and Newton's estimate; the next y is that estimate pushed past the root by a padding that grows while the sign
// does not change; a bisection follows where Newton leaves the bracket, where three passes brought no progress, or
// where only bisections can still meet max_steps. The constants are those of augserve/norms/median/solve.py.
//
// It works on z = (x - center) / std, with center the mean rounded to float, so that the difference is exact to a
// rounding; y is always a float.

#include "median.hpp"

#include <cmath>
#include <cstring>
#include <limits>

#include "order_statistic.hpp"

namespace augserve {
namespace {

constexpr double PADDING = 0.4, PADDING_GROWTH = 4.0, NEAR_RATIO = 1.0 / 16;
constexpr double STEP_RATIO = 0.25, INITIAL_BRACKET = 1.001;
constexpr int PATIENCE = 3;
constexpr double LARGEST_PHI = 1e9;  // beyond it the median is the midrange up to rounding
constexpr std::size_t FEW = 8;
constexpr std::size_t SAMPLE = SAMPLE_SIZE / BLOCK;

double power_of(double d, double p) {
    return p == 0.5 ? std::sqrt(d) : double(std::pow(float(d), float(p)));  // in float: faster, and near enough
}

// Where slope d + count d^p = size has its root, p < 1, from a guess.
double distance_from_atom(double slope, double count, double p, double size, double d) {
    if (p == 0.5) {  // of a quadratic equation in the root of d
        const double root = 2 * size / (count + std::sqrt(count * count + 4 * slope * size));
        return root * root;
    }
    for (int k = 0; k < 8 && d > 1e-30; k++) {
        const double power = count * power_of(d, p);
        const double next = std::max(d - (slope * d + power - size) / (slope + p * power / d), 0.1 * d);
        if (std::fabs(next - d) <= 1e-2 * d) return next;
        d = next;
    }
    return d;
}

// condition ? yes : no, without a branch: that would be guessed wrong every other time, and with it the pass over the
// next channel, which the processor has begun meanwhile, would be thrown away.
inline double select(bool condition, double yes, double no) {
    std::uint64_t a, b;
    std::memcpy(&a, &yes, sizeof a);
    std::memcpy(&b, &no, sizeof b);
    const std::uint64_t mask = std::uint64_t(0) - std::uint64_t(condition);
    a = (a & mask) | (b & ~mask);
    double chosen;
    std::memcpy(&chosen, &a, sizeof chosen);
    return chosen;
}

}  // namespace

Search::Search(const Values &values, const Moments &found, Solver solver, double start)
    : values_(&values), found_(found), solver_(solver), atom_{0, 0, NO_VALUE} {
    const std::size_t count = values.plan->count();
    if (count <= 2 || solver.phi > LARGEST_PHI)
        finish(double(found.low) / 2 + double(found.high) / 2);
    else if (solver.phi == 2 || !(found.var > 0))
        finish(found.mean);
    else if (solver.phi == 1)
        finish(middle_value(values, found.low, found.high));
    else
        begin(start);
}

void Search::finish(double exact) {
    exact_ = true;
    value_ = exact;
}

void Search::begin(double start) {
    const std::size_t count = values_->plan->count();
    std_ = std::sqrt(found_.var);
    center_ = float(found_.mean);
    inverse_ = float(1 / std_);
    low_ = standard(found_.low);
    high_ = standard(found_.high);
    const double bound = solver_.phi <= 2 ? INITIAL_BRACKET : std::numeric_limits<double>::infinity();
    lower_ = std::max(low_, -bound);
    upper_ = std::min(high_, bound);
    const double first = standard(start);  // NaN is in no bracket
    estimate_ = first > lower_ && first < upper_ ? first : standard(found_.mean);
    y_ = float(estimate_);
    padding_ = PADDING * solver_.rtol;
    last_step_ = std::numeric_limits<double>::infinity();
    width_then_ = upper_ - lower_;
    if (solver_.phi < 2 && count > FEW && found_.zeros >= 2 + count / 256) atom_ = {double(found_.zeros), standard(0), 0.0f};
    choose_table();
    running_ = upper_ - lower_ > solver_.rtol;
}

// A table of powers for the passes, where one is of use: for phi <= 2 differences go up to the root of the number of
// values, in standard deviations; for phi > 2 up to 1.
void Search::choose_table() {
    constexpr std::size_t most = std::size_t(1) << 22;
    const double power = solver_.phi - 2;
    if (solver_.phi == 1.5 || values_->plan->count() > most || !wants_table(power)) return;
    const int lowest = power < 0 ? -20 : -31;
    thread_local PowerTable latest;
    if (latest.power != power || latest.lowest != lowest) latest = make_power_table(power, lowest);
    table_ = latest;
    has_table_ = true;
}

void Search::pass() { advance(solver_.phi <= 2 ? evaluate_up_to_2() : evaluate_above_2()); }

// For phi < 2 the residual bends sharply where many values are the same, as count sgn(y - z) |y - z|^(phi - 1), and
// Newton's step, which takes it for straight, jumps to and fro. Their part is known: it is left out of the sums and put
// into the model instead. Activations have such a value, 0.
Search::Evaluation Search::evaluate_up_to_2() const {
    const double p = solver_.phi - 1;
    const Standard z{center_, inverse_};
    if (values_->plan->count() <= FEW) return evaluate_few();
    double weight = 0, residual = 0;
    for (std::size_t b = 0; b < values_->blocks(); b++) {
        const float *block = values_->block(b);
        const std::size_t n = values_->size(b);
        const NewtonSums sums = solver_.phi == 1.5 ? newton_sums_root(block, n, z, y_, atom_.value)
                                                   : newton_sums(block, n, z, y_, atom_.value, float(p - 1),
                                                                 has_table_ ? &table_ : nullptr);
        weight += sums.weight;
        residual += sums.residual;
    }
    return evaluate_sums(weight, residual);
}

Search::Evaluation Search::evaluate_sums(double weight, double residual) const {
    const double p = solver_.phi - 1, y = y_, slope = p * weight;
    if (atom_.count == 0) return {residual, y - residual / slope};
    const double d = y - atom_.z, at_atom = residual - slope * d;
    double estimate = atom_.z;
    if (at_atom != 0) {
        const double size = std::fabs(at_atom);
        const double guess = d != 0 ? std::fabs(d) : power_of(size / atom_.count, 1 / p);
        estimate -= std::copysign(distance_from_atom(slope, atom_.count, p, size, guess), at_atom);
    }
    const double own = atom_.count * power_of(std::fabs(d), p);
    return {residual + std::copysign(own, d), estimate};
}

// In double: errors of a few floats do not cancel, and near phi = 1 the root moves by 1 / (phi - 1) times as much.
Search::Evaluation Search::evaluate_few() const {
    const double p = solver_.phi - 1;
    double weight = 0, residual = 0;
    for (std::size_t b = 0; b < values_->blocks(); b++) {
        const float *block = values_->block(b);
        for (std::size_t i = 0; i < values_->size(b); i++) {
            const double d = y_ - standard(block[i]), w = std::pow(std::max(std::fabs(d), 1e-30), p - 1);
            weight += w;
            residual += w * d;
        }
    }
    return {residual, y_ - residual / (p * weight)};
}

// For phi > 2 the root is also that of h(y) = (sum_left a^p)^(1/p) - (sum_right a^p)^(1/p), p = phi - 1, which is
// nearly linear far away.
Search::Evaluation Search::evaluate_above_2() const {
    const double p = solver_.phi - 1, y = y_, from_low = y - low_, to_high = high_ - y;
    const double reach = std::max({from_low, to_high, std::numeric_limits<double>::min()});
    const Standard z{center_, inverse_};
    double left = 0, right = 0, left_weight = 0, right_weight = 0;
    for (std::size_t b = 0; b < values_->blocks(); b++) {
        const SideSums sums = side_sums(values_->block(b), values_->size(b), z, y_, float(1 / reach), float(p),
                                        has_table_ ? &table_ : nullptr);
        left += sums.left;
        right += sums.right;
        left_weight += sums.left_weight;
        right_weight += sums.right_weight;
    }
    const double tiny = std::numeric_limits<float>::min();
    // With so large an exponent that even the farthest value has no power left, it is the midrange.
    if (left < tiny && right < tiny) return {from_low - to_high, low_ / 2 + high_ / 2};
    left = std::max(left, tiny);
    right = std::max(right, tiny);
    const double left_root = std::pow(left, 1 / p), right_root = std::pow(right, 1 / p);
    const double h = left_root - right_root;
    return {h, y - h * reach / (left_root / left * left_weight + right_root / right * right_weight)};
}

void Search::advance(const Evaluation &found) {
    const double y = y_, rtol = solver_.rtol, g = found.g;
    steps_++;
    const double lower = select(g <= 0, y, lower_), upper = select(g >= 0, y, upper_);
    const double side = double(g > 0) - double(g < 0);
    const double width = upper - lower, step = std::fabs(y - found.estimate);
    const double kept = select(step <= NEAR_RATIO * last_step_, padding_, padding_ * PADDING_GROWTH);
    const double padding = select(side == sign_, kept, PADDING * rtol);
    const bool halved = width <= 0.5 * width_then_;
    const int stalled = (stalled_ + 1) & -int(!(halved | (step <= STEP_RATIO * last_step_)));
    const double pushed = found.estimate - side * padding, middle = 0.5 * (lower + upper);
    const int left = std::clamp(solver_.max_steps - steps_ - 1, 0, 62);
    const bool last_call = width >= rtol * double(std::int64_t(1) << left);
    const bool newton = (pushed > lower) & (pushed < upper) & (stalled < PATIENCE) & !last_call;
    const float next = float(select(newton, pushed, middle));
    const double chosen = select((next > lower) & (next < upper), next, middle);
    y_ = float(chosen);
    const bool between = (y_ > lower) & (y_ < upper);  // else no float lies there
    running_ = (width > rtol) & (steps_ < solver_.max_steps) & between;
    stalled_ = stalled & -int(newton);
    width_then_ = select(halved, width, width_then_);
    lower_ = lower;
    upper_ = upper;
    estimate_ = found.estimate;
    sign_ = side;
    padding_ = padding;
    last_step_ = step;
}

Median Search::result() const {
    if (exact_) return {value_, value_, value_, 0, CONVERGED};
    const bool inside = estimate_ > lower_ && estimate_ < upper_;
    const double root = inside ? estimate_ : 0.5 * (lower_ + upper_);
    const auto original = [&](double z) {
        return std::clamp(center_ + z * std_, double(found_.low), double(found_.high));
    };
    const bool narrow = upper_ - lower_ <= solver_.rtol;
    return {original(root), original(lower_), original(upper_), steps_, narrow ? CONVERGED : MAX_STEPS};
}

Median median(const Values &values, const Moments &found, Solver solver, double start) {
    Search search(values, found, solver, start);
    while (search.running()) search.pass();
    return search.result();
}

double sampled_start(const Values &values, Solver solver, float *sample) {
    const std::size_t every = std::max<std::size_t>(1, values.blocks() / SAMPLE);
    std::size_t size = 0;
    for (std::size_t b = 0; b < values.blocks() && size + BLOCK <= SAMPLE_SIZE; b += every) {
        std::copy_n(values.block(b), values.size(b), sample + size);
        size += values.size(b);
    }
    const Plan plan(1, size, nullptr);
    Values few{&plan, sample, nullptr, 0, nullptr, values.scale};
    const Moments found = moments(few);
    return found.finite ? median(few, found, {solver.phi, 1e-2, 16}, std::nan("")).value : std::nan("");
}

}  // namespace augserve
