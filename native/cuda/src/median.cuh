// One set's median, whichever phi: what it is at once, or what the next pass over the values has to sum, and the step
// that follows from the sums.
#pragma once

#include "search.cuh"
#include "selection.cuh"

namespace augserve::cuda {

// What a pass sums. NOTHING: the median is known.
enum Method : std::int32_t { NOTHING, ROOT, POWER, IN_DOUBLE, SIDES, COUNTS };

// What threads need to know for a pass. z = (value * scale - center) * inverse, d = y - z.
struct Point {
    double std;
    float scale, center, inverse, y;
    float power;          // phi - 2
    float inverse_reach;  // for SIDES
    std::uint32_t without_zeros;
    std::uint32_t from, to, stride;  // for COUNTS
    std::int32_t method, unused;
};

// What a pass over some values gives: sums (ROOT, POWER, IN_DOUBLE: w and w d; SIDES: four), or counts.
struct Partial {
    double sums[4];
    std::uint32_t at_most[PIVOTS];
    std::uint32_t above;
};

struct Totals {
    double sums[4];
    Counts counts;

    AUGSERVE_ANYWHERE static Totals none() {
        Totals empty{};
        empty.counts.above = 0xffffffffu;
        return empty;
    }
    AUGSERVE_ANYWHERE void add(const Partial &part) {
        for (int k = 0; k < 4; k++) sums[k] += part.sums[k];
        for (int k = 0; k < PIVOTS; k++) counts.at_most[k] += part.at_most[k];
        if (part.above < counts.above) counts.above = part.above;
    }
};

struct Median {
    Search search;
    Selection selection;
    double exact;  // where no search is needed
    std::int32_t method, unused;

    // `found`: of all values, finite.
    AUGSERVE_ALONE AUGSERVE_ANYWHERE void begin(const Moments &found, std::uint64_t count, const Solver &solver) {
        method = NOTHING;
        const double phi = solver.phi;
        if (count <= 2 || phi > LARGEST_PHI)
            exact = double(found.low) / 2 + double(found.high) / 2;
        else if (phi == 2 || !(found.squares > 0))
            exact = found.mean;
        else if (phi == 1)
            select(found, count);
        else
            solve(found, count, solver);
    }

    AUGSERVE_ALONE AUGSERVE_ANYWHERE void advance(const Totals &found) {
        if (method == COUNTS) {
            selection.advance(found.counts);
            if (!selection.running) settle(middle());
            return;
        }
        const double *sums = found.sums;
        search.advance(method == SIDES ? search.sides(sums[0], sums[1], sums[2], sums[3])
                                       : search.newton(sums[0], sums[1]));
        if (!search.running) settle(search.value() / double(search.scale));
    }

    AUGSERVE_ANYWHERE Point point() const {
        Point at{};
        at.method = method;
        if (method == NOTHING) return at;
        if (method == COUNTS) {
            at.from = selection.from;
            at.to = selection.to;
            at.stride = selection.stride();
            return at;
        }
        at.std = search.std;
        at.scale = search.scale;
        at.center = search.center;
        at.inverse = search.inverse;
        at.y = search.y;
        at.power = float(search.solver.phi - 2);
        at.inverse_reach = float(1 / search.reach());
        at.without_zeros = search.atom_count != 0;
        return at;
    }

private:
    AUGSERVE_ANYWHERE void settle(double value) {
        exact = value;
        method = NOTHING;
    }

    AUGSERVE_ANYWHERE void select(const Moments &found, std::uint64_t count) {
        method = COUNTS;
        // Comparisons take -0 and 0 for the same, so that either may have been found as an end.
        selection.begin(key_of(found.low == 0 ? -0.0f : found.low), key_of(found.high == 0 ? 0.0f : found.high), count);
        if (!selection.running) settle(middle());
    }

    AUGSERVE_ANYWHERE void solve(const Moments &found, std::uint64_t count, const Solver &solver) {
        search.begin(found, count, solver);
        method = solver.phi > 2 ? SIDES : count <= FEW ? IN_DOUBLE : solver.phi == 1.5 ? ROOT : POWER;
        if (!search.running) settle(search.value() / double(search.scale));
    }

    AUGSERVE_ANYWHERE double middle() const {
        return double(key_value(selection.from)) / 2 + double(key_value(selection.next)) / 2;
    }

    AUGSERVE_ANYWHERE static std::uint32_t key_of(float value) { return key_of_bits(float_bits(value)); }
    AUGSERVE_ANYWHERE static float key_value(std::uint32_t key) { return bits_float(bits_of_key(key)); }
};

}  // namespace augserve::cuda
