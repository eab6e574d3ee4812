// One channel of one group on its way forward: its statistics, noted, moved toward and blended, and the affine map that
// they make.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "elementwise.hpp"
#include "median.hpp"
#include "norm.hpp"

namespace augserve {

struct Group {
    Plan plan;
    double lambda;
    std::size_t index;
};

// In units of the data.
struct Statistics {
    double center, spread;  // as the running statistics hold it: variance, denominator or range
};

// The statistics of one channel in one group, found step by step. Its values may come out multiplied with a power of
// two where their squares would not be floats.
class Channel {
public:
    // `lane` of `brackets` is this channel's.
    Channel(const augserve_forward &a, const Group &group, const Values &values, Brackets &brackets, std::size_t lane)
        : a_(a), group_(group), values_(values), brackets_(brackets), lane_(lane) {}

    const Values &values() const { return values_; }
    Values &values() { return values_; }
    double phi() const { return a_.exponents ? double(a_.exponents[values_.channel]) : a_.exponent; }

    // Takes the moments of the values; `sample` is memory for `sampled_start`, `spare` as Search takes it.
    void begin(float *sample, float *spare);
    // With moments that were taken elsewhere, of values that need no scale, and a start, NaN for none.
    void begin(const Moments &found, double start, float *spare = nullptr);

    const Search &search() const { return *search_; }  // while the lane runs

    Statistics statistics() const;

private:
    Statistics around_median(const Median &mu) const;
    Statistics with_range() const;
    Statistics nothing() const;
    void move(float *moving, double toward) const;
    void note(double center, double spread, double first, double second, std::int64_t steps) const;

    const augserve_forward &a_;
    const Group &group_;
    Values values_;
    Brackets &brackets_;
    std::size_t lane_;
    Moments found_{};
    double unit_ = 1;
    std::optional<Search> search_;
};

// The groups of a call; without `order` one of all rows.
std::vector<Group> groups_of(const augserve_forward &a);

Statistics blended(const augserve_forward &a, const Group &group, std::size_t channel, Statistics own);

// The map of values that were multiplied with `values_scale`.
Affine affine_of(const augserve_forward &a, std::size_t channel, Statistics s, double values_scale);

}  // namespace augserve
