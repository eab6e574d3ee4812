// The statistics groups of a run, as the kernels take them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace augserve::ort {

// Groups that have no rows are left out; the rows of a group stay in the order of the run.
struct Groups {
    std::vector<std::int64_t> order;    // row indices, group after group
    std::vector<std::int64_t> offsets;  // where each group begins in `order`, and the end
    std::vector<float> tracked_weight;  // of each group, in [0, 1]

    std::size_t count() const { return tracked_weight.size(); }
};

// `group`: an id in 0..rows-1 for each row; `tracked_weight`: equal within a group, from 1 on it is 1.
// Throws Failure.
Groups group_rows(const std::int64_t *group, const float *tracked_weight, std::size_t rows);

}  // namespace augserve::ort
