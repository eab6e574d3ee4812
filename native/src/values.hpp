// The values of one channel of one group, as the solver goes over them, and their moments.
#pragma once

#include <algorithm>
#include <cstddef>

#include "view.hpp"

namespace augserve {

// The values of one channel, block by block: copied to one place beforehand and cut there, or loaded again for every
// pass as the plan cuts them.
struct Values {
    const Plan *plan;
    float *copied;        // or nullptr
    const View *view;     // where they are loaded from
    std::size_t channel;
    float *buffer;        // of BLOCK floats, for load
    float scale;          // a power of two that the loaded values are multiplied with

    std::size_t blocks() const { return copied ? (plan->count() + BLOCK - 1) / BLOCK : plan->blocks; }
    std::size_t size(std::size_t index) const {
        return copied ? std::min(BLOCK, plan->count() - index * BLOCK) : plan->size(index);
    }
    const float *block(std::size_t index) const { return copied ? copied + index * BLOCK : load(index); }
    void multiply(float by);

private:
    const float *load(std::size_t index) const;
};

// Mean, biased variance and extremes, in units of the scaled values.
struct Moments {
    double mean, var;
    float low, high;
    std::size_t zeros;
    bool finite;
};
Moments moments(const Values &values);

// A power of two that brings the largest of the values near 1 where squares of them might leave the range of float,
// else 1.
float safe_scale(float low, float high);

}  // namespace augserve
