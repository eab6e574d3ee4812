// Channels-last: where channels lie side by side, sixteen of them are sixteen lanes of a register, and rows are read as
// they lie, without a transpose. Work is cut by rows: into chunks whose number and size depend on the group alone, so
// that sums over chunks are the same for any number of threads and whatever else is normalized.
#pragma once

#include "../include/augserve.h"

namespace augserve {

struct Group;

// Do the work for one group, or the whole call, and return true; or return false where this is not the way: another
// layout or format, phi above 2 or one for each channel, few channels, no AVX-512, or values of the group so large or
// small that they need a scale.
bool forward_in_lanes(const augserve_forward &a, const Group &group, const augserve_executor *executor);
bool backward_in_lanes(const augserve_backward &a, const augserve_executor *executor);

}  // namespace augserve
