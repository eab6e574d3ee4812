// The generalized geometric median of one channel: a bracketed Newton iteration with a certificate, as
// augserve/norms/median/solve.py describes it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "passes.hpp"
#include "power_table.hpp"
#include "values.hpp"

namespace augserve {

struct Solver {
    double phi, rtol;
    int max_steps;
};

enum Status { CONVERGED = 0, MAX_STEPS = 1, NOT_FINITE = 2 };

struct Median {
    double value, lower, upper;  // in units of the scaled values
    std::int64_t steps, status;
};

// The search for one channel's median, pass by pass, so that several can take turns: while the numbers of one are
// added up and its next step is taken, the processor is busy with the values of another.
//
// The values must be finite, and at least one. `start`: where to begin, NaN for the mean.
class Search {
public:
    Search(const Values &values, const Moments &found, Solver solver, double start);

    bool running() const { return running_; }
    void pass();
    Median result() const;

    // For phi < 2, a pass whose sums are taken elsewhere: over the values that are not `without`, w = |d|^(phi - 2),
    // d = y - (value - center) * inverse.
    struct Point {
        Standard z;
        float y, without;
    };
    Point point() const { return {{center_, inverse_}, y_, atom_.value}; }
    const PowerTable *table() const { return has_table_ ? &table_ : nullptr; }
    void step(double weight, double residual) { advance(evaluate_sums(weight, residual)); }

private:
    // A function with the sign of the residual, and where it would be 0 by what one pass knows of it.
    struct Evaluation {
        double g, estimate;
    };
    // Many values that are the same; see median.cpp.
    struct Atom {
        double count, z;
        float value;
    };

    void finish(double exact);
    void begin(double start);
    void choose_table();
    Evaluation evaluate_up_to_2() const;
    Evaluation evaluate_sums(double weight, double residual) const;
    Evaluation evaluate_few() const;
    Evaluation evaluate_above_2() const;
    void advance(const Evaluation &found);
    double standard(double value) const { return (value - center_) / std_; }

    const Values *values_;
    Moments found_;
    Solver solver_;
    bool running_ = false, exact_ = false;
    double value_ = 0, std_ = 1;
    float center_ = 0, inverse_ = 1;
    Atom atom_;
    PowerTable table_;
    bool has_table_ = false;
    double low_ = 0, high_ = 0, lower_ = 0, upper_ = 0, estimate_ = 0;
    double sign_ = 0, padding_ = 0, last_step_ = 0, width_then_ = 0;
    int stalled_ = 0, steps_ = 0;
    float y_ = 0;
};

Median median(const Values &values, const Moments &found, Solver solver, double start);

// A start from every so many-th block of very many values, which saves passes where the data do not stay in cache.
// `sample` has room for SAMPLE_SIZE floats; NaN where a value of the sample is not finite.
constexpr std::size_t SAMPLE_SIZE = 64 * BLOCK;
double sampled_start(const Values &values, Solver solver, float *sample);

}  // namespace augserve
