// See operators.hpp: the table of the operators, and what the runtime asks of each before it makes a node of it.

#include "operators.hpp"

#include <climits>
#include <cstdio>
#include <limits>
#include <vector>

#include "../../include/augserve.h"
#include "status.hpp"

namespace augserve::ort {

const Operator operators[OPERATORS] = {
    {"AugNorm", AUGSERVE_AUG, 0, "phi", true, false},
    {"AugNormAbove2", AUGSERVE_AUG, 0, "phi", true, false},
    {"AugNormLearned", AUGSERVE_AUG, 2, nullptr, true, true},
    {"BatchNorm", AUGSERVE_AUG, 2, nullptr, false, false},
    {"MedianNorm", AUGSERVE_AUG, 1, nullptr, false, false},
    {"MidrangeNorm", AUGSERVE_AUG, std::numeric_limits<double>::infinity(), nullptr, false, false},
    {"RobustNorm", AUGSERVE_ROBUST, 0, "p", false, false},
    {"RobustRangeNorm", AUGSERVE_ROBUST_RANGE, 0, "p", false, false},
};

const Ending endings[ENDINGS] = {
    {"", false, false}, {"Relu", false, true}, {"Add", true, false}, {"AddRelu", true, true}};

namespace {

const CustomOp &own(const OrtCustomOp *op) { return *static_cast<const CustomOp *>(op); }

// y has the shape of x. Rank 0 is how a shape that is not known arrives, and a size that is neither known nor named
// would come back as -1: then nothing is said.
bool is_known(const OrtApi &api, const OrtTensorTypeAndShapeInfo *info) {
    std::size_t rank = 0;
    check(api.GetDimensionsCount(info, &rank));
    if (rank == 0) return false;
    std::vector<std::int64_t> sizes(rank);
    std::vector<const char *> names(rank, nullptr);
    check(api.GetDimensions(info, sizes.data(), rank));
    check(api.GetSymbolicDimensions(info, names.data(), rank));
    for (std::size_t k = 0; k < rank; k++)
        if (sizes[k] < 0 && (!names[k] || !*names[k])) return false;
    return true;
}

OrtStatus *AUGSERVE_ORT_CALL infer_shape(const OrtCustomOp *self, OrtShapeInferContext *context) {
    const CustomOp &op = own(self);
    OrtStatus *status = guarded(*op.api, op.name, [&] {
        OrtTensorTypeAndShapeInfo *info = nullptr;  // of the context: not ours to release
        check(op.api->ShapeInferContext_GetInputTypeShape(context, X, &info));
        if (is_known(*op.api, info)) check(op.api->ShapeInferContext_SetOutputTypeShape(context, 0, info));
    });
    if (status) op.api->ReleaseStatus(status);  // some versions look at no status here; the run has its own checks
    return nullptr;
}

const char *AUGSERVE_ORT_CALL name(const OrtCustomOp *self) { return own(self).name; }

const char *AUGSERVE_ORT_CALL provider_name(const OrtCustomOp *) { return provider.name; }

int AUGSERVE_ORT_CALL input_type(const OrtCustomOp *self, std::size_t index) {
    if (index == X || index == own(self).residual()) return own(self).type;
    return index == GROUP ? INT64 : FLOAT;
}

int AUGSERVE_ORT_CALL output_type(const OrtCustomOp *self, std::size_t) { return own(self).type; }

std::size_t AUGSERVE_ORT_CALL inputs(const OrtCustomOp *self) { return own(self).inputs(); }

std::size_t AUGSERVE_ORT_CALL outputs(const OrtCustomOp *) { return 1; }

int AUGSERVE_ORT_CALL required(const OrtCustomOp *, std::size_t) { return 0; }

int AUGSERVE_ORT_CALL memory(const OrtCustomOp *, std::size_t index) {
    return index == GROUP || index == TRACKED_WEIGHT ? provider.memory_of_groups : MEMORY_OF_PROVIDER;
}

int AUGSERVE_ORT_CALL not_variadic(const OrtCustomOp *) { return 1; }

// One pair of an input and the output that may take its memory, where nothing else reads that input. The runtime writes to
// neither.
std::size_t AUGSERVE_ORT_CALL in_place(int **inputs, int **outputs) {
    static int x = X, y = 0;
    *inputs = &x;
    *outputs = &y;
    return 1;
}

void AUGSERVE_ORT_CALL release_in_place(int *, int *) {}

int AUGSERVE_ORT_CALL first_version(const OrtCustomOp *) { return 1; }

int AUGSERVE_ORT_CALL last_version(const OrtCustomOp *) { return INT_MAX; }

}  // namespace

CustomOp custom_op(const OrtApi &api, const Operator &which, const Ending &ending, ElementType type) {
    CustomOp op{};
    op.version = API_VERSION;
    op.GetName = name;
    op.GetExecutionProviderType = provider_name;
    op.GetInputType = input_type;
    op.GetInputTypeCount = inputs;
    op.GetOutputType = output_type;
    op.GetOutputTypeCount = outputs;
    op.KernelDestroy = provider.destroy;
    op.GetInputCharacteristic = required;
    op.GetOutputCharacteristic = required;
    op.GetInputMemoryType = memory;
    op.GetVariadicInputMinArity = not_variadic;
    op.GetVariadicInputHomogeneity = not_variadic;
    op.GetVariadicOutputMinArity = not_variadic;
    op.GetVariadicOutputHomogeneity = not_variadic;
    op.CreateKernelV2 = provider.create;
    op.KernelComputeV2 = provider.run;
    op.InferOutputShapeFn = infer_shape;
    op.GetStartVersion = first_version;
    op.GetEndVersion = last_version;
    if (provider.in_place) {
        op.GetMayInplace = in_place;
        op.ReleaseMayInplace = release_in_place;
    }
    op.api = &api;
    op.which = &which;
    op.ending = &ending;
    op.type = type;
    std::snprintf(op.name, sizeof op.name, "%s%s", which.name, ending.suffix);
    return op;
}

}  // namespace augserve::ort
