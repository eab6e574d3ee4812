// The generalized geometric median of one channel: what a pass over its values tells of it. Where the passes look, and
// the certificate, are bracket.hpp's; augserve/norms/median/solve.py describes both.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bracket.hpp"
#include "passes.hpp"
#include "power_table.hpp"
#include "values.hpp"

namespace augserve {

struct Solver {
    double phi, rtol;
    std::int64_t max_steps;
};

enum Status { CONVERGED = 0, MAX_STEPS = 1, NOT_FINITE = 2 };

struct Median {
    double value, lower, upper;  // in units of the scaled values
    std::int64_t steps, status;
};

// The search for one channel's median: what a pass over its values tells, for a lane of brackets that says where to look
// and when to stop. So several searches take turns: while one's numbers are added up, the processor is busy with the
// values of another.
//
// The values must be finite, and at least one. `start`: where to begin, NaN for the mean. `spare`: memory for a copy of
// the values with room for a register more, or nullptr.
class Search {
public:
    Search(const Values &values, const Moments &found, double phi, double start, Brackets &brackets, std::size_t lane,
           float *spare = nullptr);

    Evaluation evaluate(double y) const { return phi_ <= 2 ? evaluate_up_to_2(y) : evaluate_above_2(y); }
    Median result(const Bracket &bracket, double rtol) const;

    // For phi < 2, a pass whose sums are taken elsewhere: over the values that are not `without`, w = |d|^(phi - 2),
    // d = y - (value - center) * inverse.
    Standard standard() const { return {center_, inverse_}; }
    float without() const { return atom_.value; }
    const PowerTable *table() const { return has_table_ ? &table_ : nullptr; }
    Evaluation evaluate_sums(double y, double weight, double residual) const;

private:
    // Many values that are the same; see median.cpp.
    struct Atom {
        double count, z;
        float value;
    };

    void finish(double exact);
    void begin(double start, Brackets &brackets, std::size_t lane);
    void pack(float *spare);
    void choose_table();
    Evaluation evaluate_up_to_2(double y) const;
    Evaluation evaluate_few(double y) const;
    Evaluation evaluate_above_2(double y) const;
    double standard(double value) const { return (value - center_) / std_; }

    template <class Sums>
    void each_block(Sums sums) const;

    const Values *values_;
    const float *packed_ = nullptr;  // the values without those of the atom, where they were copied
    std::size_t packed_count_ = 0;
    Moments found_;
    double phi_;
    bool exact_ = false;
    double value_ = 0, std_ = 1;
    float center_ = 0, inverse_ = 1;
    Atom atom_;
    PowerTable table_;
    bool has_table_ = false;
    double low_ = 0, high_ = 0;
};

Median median(const Values &values, const Moments &found, const Solver &solver, double start);

// A start from every so many-th block of very many values, which saves passes where the data do not stay in cache.
// `sample` has room for SAMPLE_SIZE floats; NaN where a value of the sample is not finite.
constexpr std::size_t SAMPLE_SIZE = 64 * BLOCK;
double sampled_start(const Values &values, const Solver &solver, float *sample);

}  // namespace augserve
