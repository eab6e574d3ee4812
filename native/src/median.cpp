// What passes tell of one channel's median, on z = (x - center) / std, with center the mean rounded to float, so that the
// difference is exact to a rounding; y is always a float.

#include "median.hpp"

#include <cmath>
#include <limits>

#include "order_statistic.hpp"

namespace augserve {
namespace {

constexpr double INITIAL_BRACKET = 1.001, MEAN_SQUARE = 1 + INITIAL_BRACKET * INITIAL_BRACKET;
constexpr double LARGEST_PHI = 1e9;  // beyond it the median is the midrange up to rounding
constexpr std::size_t FEW = 8;
constexpr double WORTH_PACKING = 8;  // a copy costs about a pass, and three or more follow
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

}  // namespace

Search::Search(const Values &values, const Moments &found, double phi, double start, Brackets &brackets,
               std::size_t lane, float *spare)
    : values_(&values), found_(found), phi_(phi), atom_{0, 0, NO_VALUE} {
    const std::size_t count = values.plan->count();
    if (count <= 2 || phi_ > LARGEST_PHI)
        finish(double(found.low) / 2 + double(found.high) / 2);
    else if (phi_ == 2 || !(found.var > 0))
        finish(found.mean);
    else if (phi_ == 1)
        finish(middle_value(values, found.low, found.high));
    else {
        begin(start, brackets, lane);
        if (spare) pack(spare);
    }
}

void Search::finish(double exact) {
    exact_ = true;
    value_ = exact;
}

void Search::begin(double start, Brackets &brackets, std::size_t lane) {
    const std::size_t count = values_->plan->count();
    std_ = std::sqrt(found_.var);
    center_ = float(found_.mean);
    inverse_ = float(1 / std_);
    low_ = standard(found_.low);
    high_ = standard(found_.high);
    const double bound = phi_ <= 2 ? INITIAL_BRACKET : std::numeric_limits<double>::infinity();
    const double lower = std::max(low_, -bound), upper = std::min(high_, bound), first = standard(start);
    if (phi_ < 2 && count > FEW && found_.zeros >= 2 + count / 256) atom_ = {double(found_.zeros), standard(0), 0.0f};
    choose_table();
    const double slope = phi_ <= 2 ? (phi_ - 1) * double(count) * std::pow(MEAN_SQUARE, phi_ / 2 - 1) : 0;
    // NaN is in no bracket.
    brackets.begin(lane, lower, upper, first > lower && first < upper ? first : standard(found_.mean), slope);
}

// Passes over the values without those of the atom, where enough are left out to be worth a copy.
void Search::pack(float *spare) {
    if (atom_.count * WORTH_PACKING < double(values_->plan->count()) || !packs_values()) return;
    for (std::size_t b = 0; b < values_->blocks(); b++)
        packed_count_ += pack_values(values_->block(b), values_->size(b), atom_.value, spare + packed_count_);
    packed_ = spare;
}

template <class Sums>
void Search::each_block(Sums sums) const {
    if (packed_)
        for (std::size_t at = 0; at < packed_count_; at += BLOCK)
            sums(packed_ + at, std::min(BLOCK, packed_count_ - at));
    else
        for (std::size_t b = 0; b < values_->blocks(); b++) sums(values_->block(b), values_->size(b));
}

// A table of powers for the passes, where one is of use: for phi <= 2 differences go up to the root of the number of
// values, in standard deviations; for phi > 2 up to 1.
void Search::choose_table() {
    constexpr std::size_t most = std::size_t(1) << 22;
    const double power = phi_ - 2;
    if (phi_ == 1.5 || values_->plan->count() > most || !wants_table(power)) return;
    const int lowest = power < 0 ? -20 : -31;
    thread_local PowerTable latest;
    if (latest.power != power || latest.lowest != lowest) latest = make_power_table(power, lowest);
    table_ = latest;
    has_table_ = true;
}

// For phi < 2 the residual bends sharply where many values are the same, as count sgn(y - z) |y - z|^(phi - 1), and
// Newton's step, which takes it for straight, jumps to and fro. Their part is known: it is left out of the sums and put
// into the model instead. Activations have such a value, 0.
Evaluation Search::evaluate_up_to_2(double y) const {
    const double p = phi_ - 1;
    const Standard z{center_, inverse_};
    if (values_->plan->count() <= FEW) return evaluate_few(y);
    double weight = 0, residual = 0;
    const float without = packed_ ? NO_VALUE : atom_.value;
    each_block([&](const float *block, std::size_t n) {
        const NewtonSums sums = phi_ == 1.5 ? newton_sums_root(block, n, z, float(y), without)
                                            : newton_sums(block, n, z, float(y), without, float(p - 1), table());
        weight += sums.weight;
        residual += sums.residual;
    });
    return evaluate_sums(y, weight, residual);
}

Evaluation Search::evaluate_sums(double y, double weight, double residual) const {
    const double p = phi_ - 1, slope = p * weight;
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
Evaluation Search::evaluate_few(double y) const {
    const double p = phi_ - 1;
    double weight = 0, residual = 0;
    for (std::size_t b = 0; b < values_->blocks(); b++) {
        const float *block = values_->block(b);
        for (std::size_t i = 0; i < values_->size(b); i++) {
            const double d = y - standard(block[i]), w = std::pow(std::max(std::fabs(d), 1e-30), p - 1);
            weight += w;
            residual += w * d;
        }
    }
    return {residual, y - residual / (p * weight)};
}

// For phi > 2 the root is also that of h(y) = (sum_left a^p)^(1/p) - (sum_right a^p)^(1/p), p = phi - 1, which is
// nearly linear far away.
Evaluation Search::evaluate_above_2(double y) const {
    const double p = phi_ - 1, from_low = y - low_, to_high = high_ - y;
    const double reach = std::max({from_low, to_high, std::numeric_limits<double>::min()});
    const Standard z{center_, inverse_};
    double left = 0, right = 0, left_weight = 0, right_weight = 0;
    for (std::size_t b = 0; b < values_->blocks(); b++) {
        const SideSums sums = side_sums(values_->block(b), values_->size(b), z, float(y), float(1 / reach), float(p),
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

Median Search::result(const Bracket &found, double rtol) const {
    if (exact_) return {value_, value_, value_, 0, CONVERGED};
    const bool inside = found.estimate > found.lower && found.estimate < found.upper;
    const double root = inside ? found.estimate : 0.5 * (found.lower + found.upper);
    const auto original = [&](double z) {
        return std::clamp(center_ + z * std_, double(found_.low), double(found_.high));
    };
    const bool narrow = found.upper - found.lower <= rtol;
    return {original(root), original(found.lower), original(found.upper), found.steps, narrow ? CONVERGED : MAX_STEPS};
}

Median median(const Values &values, const Moments &found, const Solver &solver, double start) {
    Brackets brackets(solver.rtol, solver.max_steps);
    const Search search(values, found, solver.phi, start, brackets, 0);
    while (brackets.running()) {
        brackets.found(0, search.evaluate(brackets.y(0)));
        brackets.step();
    }
    return search.result(brackets.bracket(0), solver.rtol);
}

double sampled_start(const Values &values, const Solver &solver, float *sample) {
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
