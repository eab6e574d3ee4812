// Rows with lambda = 1, normalized by running statistics alone. Nothing is summed: they are read and written once, as they
// lie, from the first value to the last, whatever groups they belong to.
#pragma once

#include <cstddef>
#include <vector>

#include "../include/augserve.h"

namespace augserve {

// Whether rows of this call can go this way: floats, the positions of a channel side by side and enough of them.
bool row_by_row(const augserve_forward &a);

void forward_tracked(const augserve_forward &a, const std::vector<std::size_t> &rows, const augserve_executor *executor);

}  // namespace augserve
