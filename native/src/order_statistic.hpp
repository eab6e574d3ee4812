// The median for phi = 1.
#pragma once

#include "values.hpp"

namespace augserve {

// The midpoint of the two middle values; low and high are the extremes.
double middle_value(const Values &values, float low, float high);

}  // namespace augserve
