// See groups.hpp. Rows are sorted by counting, which keeps their order.

#include "groups.hpp"

#include <algorithm>
#include <cstdio>
#include <string>

#include "status.hpp"

namespace augserve::ort {
namespace {

template <class... Values>
[[noreturn]] void fail(const char *format, Values... values) {
    char text[160];
    std::snprintf(text, sizeof text, format, values...);
    throw Failure{text};
}

std::size_t checked_id(const std::int64_t *group, std::size_t row, std::size_t rows) {
    const std::int64_t id = group[row];
    if (id < 0 || id >= std::int64_t(rows))
        fail("group of row %zu is %lld; expected an id from 0 to %zu, one less than the rows of the run", row,
             static_cast<long long>(id), rows - 1);
    return std::size_t(id);
}

float checked_weight(const float *tracked_weight, std::size_t row) {
    const float weight = tracked_weight[row];
    if (!(weight >= 0)) fail("tracked_weight of row %zu is %g; expected a number in [0, 1]", row, double(weight));
    return std::min(weight, 1.0f);
}

}  // namespace

Groups group_rows(const std::int64_t *group, const float *tracked_weight, std::size_t rows) {
    std::vector<std::size_t> next(rows, 0);  // of each id: how many rows, then where its next row goes
    for (std::size_t row = 0; row < rows; row++) next[checked_id(group, row, rows)]++;

    Groups found;
    found.offsets.push_back(0);
    for (std::size_t &entry : next) {
        const std::int64_t begin = found.offsets.back(), size = std::int64_t(entry);
        if (size > 0) found.offsets.push_back(begin + size);
        entry = std::size_t(begin);
    }
    found.order.resize(rows);
    for (std::size_t row = 0; row < rows; row++) found.order[next[std::size_t(group[row])]++] = std::int64_t(row);

    for (std::size_t g = 0; g + 1 < found.offsets.size(); g++) {
        const std::size_t first = std::size_t(found.order[std::size_t(found.offsets[g])]);
        const float weight = checked_weight(tracked_weight, first);
        for (std::int64_t i = found.offsets[g]; i < found.offsets[g + 1]; i++) {
            const std::size_t row = std::size_t(found.order[std::size_t(i)]);
            const float other = checked_weight(tracked_weight, row);
            if (other != weight)
                fail("rows %zu and %zu of group %lld have tracked_weight %g and %g; expected one for all rows of a "
                     "group", first, row, static_cast<long long>(group[row]), double(weight), double(other));
        }
        found.tracked_weight.push_back(weight);
    }
    return found;
}

}  // namespace augserve::ort
