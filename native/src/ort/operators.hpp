// The operators of the domain `augserve` as ONNX Runtime takes them: what export/operators/body.py writes as functions.
//
// Each library has one provider of kernels (node.cpp here, native/cuda's node.cu there); everything else is the same.
#pragma once

#include <cstdint>

#include "api.hpp"

namespace augserve::ort {

constexpr char DOMAIN_NAME[] = "augserve";

// One operator: a center and a spread of the kernels, with an exponent that is fixed or an attribute.
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

// Where this library's kernels run, and how the runtime makes, runs and destroys a node of them.
struct Provider {
    const char *name;
    int memory_of_groups;  // where `group` and `tracked_weight` are wanted
    bool in_place;         // y may be x
    OrtStatus *(AUGSERVE_ORT_CALL *create)(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *, void **);
    OrtStatus *(AUGSERVE_ORT_CALL *run)(void *, OrtKernelContext *);
    void (AUGSERVE_ORT_CALL *destroy)(void *);
};
constexpr int MEMORY_OF_HOST = -2, MEMORY_OF_PROVIDER = 0;
extern const Provider provider;

}  // namespace augserve::ort
