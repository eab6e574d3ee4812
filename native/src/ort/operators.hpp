// The operators of the domain `augserve` as ONNX Runtime takes them: what export/operators.py writes as functions.
#pragma once

#include <cstdint>

#include "api.hpp"

namespace augserve::ort {

constexpr char DOMAIN_NAME[] = "augserve";

// One operator: a center and a spread of the kernels, with an exponent that is fixed or an attribute.
struct Operator {
    const char *name;
    std::int64_t kind;
    double exponent;
    const char *exponent_attribute;  // or nullptr
    bool solver;                     // has the attributes rtol and max_steps
    bool learned = false;            // takes one input more: an exponent for each channel
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

// What the runtime sees of an operator with an ending for one type of x and y.
struct CustomOp : OrtCustomOp {
    const OrtApi *api;
    const Operator *which;
    const Ending *ending;
    ElementType type;
    char name[32];
};
CustomOp custom_op(const OrtApi &api, const Operator &which, const Ending &ending, ElementType type);

}  // namespace augserve::ort
