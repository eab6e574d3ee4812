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
};

constexpr std::size_t OPERATORS = 7;
extern const Operator operators[OPERATORS];

// What the runtime sees of an operator for one type of x and y.
struct CustomOp : OrtCustomOp {
    const OrtApi *api;
    const Operator *which;
    ElementType type;
};
CustomOp custom_op(const OrtApi &api, const Operator &which, ElementType type);

}  // namespace augserve::ort
