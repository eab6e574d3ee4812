// One channel on its way backward: what its passes need, and what their sums make of it.
//
// With r = 1 / divisor, t = (x - center) r, A = sum dL/dy, B = sum dL/dy t over the m values of a channel:
//
//   AUG     dL/dx_i = gamma r (dL/dy_i - t_i B / m) + D w_i / sum w,   w_i = |x_i - mu|^(phi - 2)
//           D = dL/dmu = -gamma r (A - (mean - mu) r B),   dL/dphi = D dmu/dphi
//           dmu/dphi = sum sgn(x - mu) |x - mu|^(phi - 1) ln|x - mu| / ((phi - 1) sum w)
//   ROBUST  dL/dx_i = gamma r (dL/dy_i - A / m) -+ gamma r B p range^(p - 1) / (number of ties), at max and min
//   both    dL/dgamma = B, dL/dbeta = A
//
// The weights and dmu/dphi do not change when all differences are divided by one number: for powers the largest
// difference is 1, so that none overflows.
#pragma once

#include <cstddef>

#include "../include/augserve.h"
#include "elementwise.hpp"
#include "passes.hpp"

namespace augserve {

enum class Weights { EVEN, ROOT, POWER };

struct GradientChannel {
    std::size_t index;
    double phi, r, gamma;
    Standard t;  // r (x - center)
    Weights weights;
    Power power;
    Affine gate;  // y of x, where a ReLU followed
};

// `count`: values of a channel.
GradientChannel describe_channel(const augserve_backward &a, std::size_t channel, std::size_t count);

struct GradientTotals {
    double dy, dy_t, weight, weight_log;
    std::size_t at_low, at_high;  // values that are the least, the largest
};

struct GradientMap {
    GradientTerms by;
    float at_low, at_high;
};

// Writes the gradients of the parameters and returns how dL/dx is made.
GradientMap finish_channel(const augserve_backward &a, const GradientChannel &channel, const GradientTotals &total,
                           std::size_t count);

}  // namespace augserve
