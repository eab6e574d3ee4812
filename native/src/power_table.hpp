// a^power for one power and many a: with a = 2^e m, m in [1, 2), it is (2^e)^power m^power, the first from a table of
// 32 exponents and the second from a polynomial of degree 9 in m - 3/2, both made for that power.
//
// This costs a third of taking a logarithm and an exponential of every value, where a register holds half the table.
#pragma once

namespace augserve {

struct PowerTable {
    static constexpr int DEGREE = 9, EXPONENTS = 32;

    double power = 0;
    int lowest = 0;             // the exponents are lowest .. lowest + 31
    float steps[EXPONENTS];     // (2^e)^power at (e + 127) % 32, the last bits of the exponent as it is stored
    float terms[DEGREE + 1];    // of the polynomial, the constant first
    float floor = 0;            // 2^lowest: smaller values are taken for it
};

// The largest relative error is that of rounding, about 3e-7, for powers from -1 to 6.
constexpr double LEAST_POWER = -1, MOST_POWER = 6;
PowerTable make_power_table(double power, int lowest);

}  // namespace augserve
