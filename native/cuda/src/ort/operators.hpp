// The operators of the domain `augserve` for ONNX Runtime's CUDA provider: those of native/src/ort, by the same names,
// with the same inputs, attributes and errors.
#pragma once

#include <cstdint>

#include "api.hpp"

namespace augserve::cuda {

constexpr char DOMAIN_NAME[] = "augserve";

struct Operator {
    const char *name;
    std::int32_t kind;  // augserve_kind
    double exponent;
    const char *exponent_attribute;  // or nullptr
    bool solver;                     // has the attributes rtol and max_steps
    bool learned;                    // takes one input more: an exponent for each channel
};

constexpr std::size_t OPERATORS = 8;
extern const Operator operators[OPERATORS];

// What follows the norm in the same node; `suffix` comes after the operator's name.
struct Ending {
    const char *suffix;
    bool residual;  // an input more, of the shape of x
    bool relu;
};

constexpr std::size_t ENDINGS = 4;
extern const Ending endings[ENDINGS];

// After these come, where the operator has them, exponents and the residual, in this order.
enum Input : std::size_t { X, WEIGHT, BIAS, RUNNING_MEAN, RUNNING_SPREAD, GROUP, TRACKED_WEIGHT, EXPONENTS };

// What the runtime sees of an operator with an ending for one type of x and y.
struct CustomOp : OrtCustomOp {
    const OrtApi *api;
    const Operator *which;
    const Ending *ending;
    ElementType type;
    char name[32];

    std::size_t residual() const { return which->learned ? EXPONENTS + 1 : std::size_t(EXPONENTS); }
    std::size_t inputs() const { return residual() + (ending->residual ? 1 : 0); }
};
CustomOp custom_op(const OrtApi &api, const Operator &which, const Ending &ending, ElementType type);

}  // namespace augserve::cuda
