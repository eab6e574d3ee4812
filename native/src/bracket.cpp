// See bracket.hpp. A pass evaluates at y the residual g, whose sign moves one end of the bracket to y and whose size may
// move the other, and Newton's estimate; the next y is that estimate pushed past the root by a padding that grows while
// the sign does not change; a bisection follows where Newton leaves the bracket, where three passes brought no progress,
// or where only bisections can still meet max_steps. The constants are those of augserve/norms/median/solve.py.

#include "bracket.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace augserve {
namespace {

constexpr double PADDING = 0.2, PADDING_GROWTH = 4.0, NEAR_RATIO = 1.0 / 16, STEP_RATIO = 0.25, PATIENCE = 3;

}  // namespace

// Where the passes lead to, without a branch, since one that is guessed wrong costs as much as all of it. `ended` becomes
// 1 in lanes that are to stop; a bracket as wide as `last_call` can only be bisected any more.
void Brackets::advance(Lane &ended, double last_call) {
    for (std::size_t k = 0; k < LANES; k++) {
        const double at = y_[k], root = estimate_[k], from = lower_[k], to = upper_[k], past = last_step_[k];
        const double narrow = padding_[k], wide = narrow * PADDING_GROWTH, then = width_then_[k], more = stalled_[k] + 1;
        const double side = double(g_[k] > 0) - double(g_[k] < 0);
        const double beyond = at - side * (std::fabs(g_[k]) / least_slope_[k] + PADDING * rtol_);
        const double left = g_[k] <= 0 ? at : std::max(from, beyond), right = g_[k] >= 0 ? at : std::min(to, beyond);
        const double width = right - left, step = std::fabs(at - root);
        const double kept = step <= NEAR_RATIO * past ? narrow : wide;
        const double pad = side == sign_[k] ? kept : PADDING * rtol_;
        const bool halved = width <= 0.5 * then;
        const double waited = (halved | (step <= STEP_RATIO * past)) ? 0.0 : more;
        const double pushed = root - side * pad, middle = 0.5 * (left + right);
        const bool newton = (pushed > left) & (pushed < right) & (waited < PATIENCE) & (width < last_call);
        const double next = double(float(newton ? pushed : middle));
        const double chosen = double(float((next > left) & (next < right) ? next : middle));
        const bool between = (chosen > left) & (chosen < right);  // else no float lies there
        ended[k] = (width > rtol_) & between ? 0.0 : 1.0;
        y_[k] = chosen;
        lower_[k] = left;
        upper_[k] = right;
        sign_[k] = side;
        padding_[k] = pad;
        last_step_[k] = step;
        width_then_[k] = halved ? width : then;
        stalled_[k] = newton ? waited : 0.0;
    }
}

void Brackets::begin(std::size_t lane, double lower, double upper, double first, double least_slope) {
    lower_[lane] = lower;
    upper_[lane] = upper;
    least_slope_[lane] = least_slope;
    y_[lane] = double(float(first));
    padding_[lane] = PADDING * rtol_;
    last_step_[lane] = std::numeric_limits<double>::infinity();
    width_then_[lane] = upper - lower;
    ends_[lane] = {lower, upper, first, 0};
    if (upper - lower > rtol_) running_ |= 1u << lane;
}

void Brackets::step() {
    passes_++;
    const std::int64_t left = std::clamp<std::int64_t>(max_steps_ - passes_ - 1, 0, 62);
    Lane ended;
    advance(ended, rtol_ * double(std::int64_t(1) << left));
    for (std::size_t lane = 0; lane < LANES; lane++) {
        if (!running(lane) || (ended[lane] == 0 && passes_ < max_steps_)) continue;
        ends_[lane] = {lower_[lane], upper_[lane], estimate_[lane], passes_};
        running_ &= ~(1u << lane);
    }
}

}  // namespace augserve
