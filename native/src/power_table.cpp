// The table of power_table.hpp: m^power through its values at the Chebyshev nodes, in divided differences.

#include "power_table.hpp"

#include <cmath>

namespace augserve {

PowerTable make_power_table(double power, int lowest) {
    constexpr int n = PowerTable::DEGREE + 1;
    PowerTable table;
    table.power = power;
    table.lowest = lowest;
    table.floor = float(std::ldexp(1.0, lowest));
    const double factor = std::exp2(power);
    double step = std::exp2(power * lowest);
    for (int e = lowest; e < lowest + PowerTable::EXPONENTS; e++, step *= factor)
        table.steps[(e + 127) % PowerTable::EXPONENTS] = float(step);
    double node[n], difference[n];
    for (int k = 0; k < n; k++) {
        node[k] = 0.5 * std::cos(3.14159265358979323846 * (k + 0.5) / n);
        difference[k] = std::pow(1.5 + node[k], power);
    }
    for (int order = 1; order < n; order++)
        for (int k = n - 1; k >= order; k--)
            difference[k] = (difference[k] - difference[k - 1]) / (node[k] - node[k - order]);
    double terms[n] = {difference[n - 1]};
    for (int k = n - 2; k >= 0; k--) {  // terms = terms * (u - node[k]) + difference[k]
        for (int i = n - 1; i > 0; i--) terms[i] = terms[i - 1] - node[k] * terms[i];
        terms[0] = difference[k] - node[k] * terms[0];
    }
    for (int k = 0; k < n; k++) table.terms[k] = float(terms[k]);
    return table;
}

}  // namespace augserve
