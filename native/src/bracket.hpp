// The brackets of up to sixteen searches, narrowed together: a step is a dozen operations, each of which waits for the
// one before; by itself it would take as long as a pass over a few hundred values, side by side they overlap.
#pragma once

#include <cstddef>
#include <cstdint>

namespace augserve {

// What a search ends with, in standard deviations from the center.
struct Bracket {
    double lower, upper, estimate;
    std::int64_t steps;
};

// What a pass finds at y: a number with the sign of the residual, and where it would be 0 by what the pass knows of it.
struct Evaluation {
    double g, estimate;
};

// What a lane holds depends on its own evaluations alone. All lanes begin before the first step.
class Brackets {
public:
    static constexpr std::size_t LANES = 16;

    Brackets(double rtol, std::int64_t max_steps) : rtol_(rtol), max_steps_(max_steps) {}

    // The root is within (lower, upper), where g has at least `least_slope` (0: unknown); the first pass is at `first`.
    void begin(std::size_t lane, double lower, double upper, double first, double least_slope);

    bool running() const { return running_ != 0; }
    bool running(std::size_t lane) const { return (running_ >> lane) & 1u; }
    double y(std::size_t lane) const { return y_[lane]; }  // where the next pass is to look; always a float

    void found(std::size_t lane, const Evaluation &at_y) {
        g_[lane] = at_y.g;
        estimate_[lane] = at_y.estimate;
    }
    // After `found` of every lane that runs.
    void step();

    // Of a lane that does not run any more.
    const Bracket &bracket(std::size_t lane) const { return ends_[lane]; }

private:
    using Lane = double[LANES];

    void advance(Lane &ended, double last_call);

    double rtol_;
    std::int64_t max_steps_, passes_ = 0;
    std::uint32_t running_ = 0;
    Lane y_ = {}, g_ = {}, estimate_ = {}, lower_ = {}, upper_ = {}, least_slope_ = {};
    Lane sign_ = {}, padding_ = {}, last_step_ = {}, width_then_ = {}, stalled_ = {};
    Bracket ends_[LANES] = {};
};

}  // namespace augserve
