// A node of a graph: it holds its attributes; a run checks the inputs, groups the rows on the host and launches kernels
// on the stream of the run.

#include "node.hpp"

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "../../../src/ort/groups.hpp"
#include "../forward.hpp"
#include "memory.hpp"

namespace augserve::cuda {
namespace {

constexpr const char *NAMES[] = {"x", "weight", "bias", "running_mean", "running_spread", "group", "tracked_weight"};

struct Node {
    const OrtApi *api;
    const CustomOp *op;
    Norm norm;  // what the attributes say of it
};

// --- attributes -------------------------------------------------------------------------------------------------

void found(const OrtApi &api, const char *name, const char *what, OrtStatus *status) {
    if (!status) return;
    api.ReleaseStatus(status);
    throw Failure{std::string("the node has no attribute ") + name + ", " + what};
}

double number(const OrtApi &api, const OrtKernelInfo *info, const char *name) {
    float value = 0;
    found(api, name, "a float", api.KernelInfoGetAttribute_float(info, name, &value));
    return double(value);
}

std::int64_t whole(const OrtApi &api, const OrtKernelInfo *info, const char *name) {
    std::int64_t value = 0;
    found(api, name, "an int", api.KernelInfoGetAttribute_int64(info, name, &value));
    return value;
}

Norm norm_of(const CustomOp &op, const OrtApi &api, const OrtKernelInfo *info) {
    Norm norm{};
    norm.kind = op.which->kind;
    norm.relu = op.ending->relu;
    norm.eps = number(api, info, "eps");
    const char *exponent = op.which->exponent_attribute;
    norm.exponent = exponent ? number(api, info, exponent) : op.which->exponent;
    const bool aug = norm.kind == AUGSERVE_AUG;
    if (aug ? !(norm.exponent >= 1) : !(norm.exponent > 0 && std::isfinite(norm.exponent)))
        throw Failure{"the exponent is out of range: phi in [1, inf], p positive"};
    norm.rtol = op.which->solver ? number(api, info, "rtol") : 1;
    const std::int64_t max_steps = op.which->solver ? whole(api, info, "max_steps") : 1;
    if (!(norm.rtol > 0) || max_steps < 1 || max_steps > 1000000)
        throw Failure{"rtol must be positive and max_steps at least 1"};
    norm.max_steps = std::int32_t(max_steps);
    return norm;
}

// --- a run ------------------------------------------------------------------------------------------------------

class Run {
public:
    Run(const Node &node, OrtKernelContext *context)
        : node_(node), api_(*node.api), context_(context), norm_(node.norm) {}

    void operator()() {
        sizes();
        void *y = output();
        if (rows_ == 0 || channels_ == 0 || positions_ == 0) return;
        const CustomOp &op = *node_.op;
        const void *residual = nullptr;
        if (op.which->learned) norm_.exponents = vector<float>(EXPONENTS, channels_);
        if (op.ending->residual) {
            if (shape(op.residual()) != shape_) throw Failure{"residual has another shape than x"};
            residual = input(op.residual());
        }
        norm_.weight = vector<float>(WEIGHT, channels_);
        norm_.bias = vector<float>(BIAS, channels_);
        norm_.running_center = vector<float>(RUNNING_MEAN, channels_);
        norm_.running_spread = vector<float>(RUNNING_SPREAD, channels_);
        const ort::Groups groups = ort::group_rows(vector<std::int64_t>(GROUP, rows_),
                                                   vector<float>(TRACKED_WEIGHT, rows_), std::size_t(rows_));
        const std::int64_t most = std::int64_t(1) << 30;  // plan() looks at the products
        if (channels_ > most || positions_ > most) throw Failure{"x is too large: a row has up to 2^30 values"};
        norm_.channels = std::uint32_t(channels_);
        norm_.positions = divisor(std::uint32_t(positions_));
        if (op.type == FLOAT16)
            compute<Half>(groups, input(X), y, residual);
        else
            compute<float>(groups, input(X), y, residual);
    }

private:
    template <class T>
    void compute(const ort::Groups &groups, const void *x, void *y, const void *residual) const {
#ifdef AUGSERVE_EMULATED
        const Stream stream = nullptr;
#else
        const Stream stream = static_cast<Stream>(compute_stream(api_, context_));
#endif
        const OnDeviceOf there(x);
        const Plan plan = cuda::plan(groups.order, groups.offsets, groups.tracked_weight, norm_.channels,
                                     norm_.positions.by, limits_of(there.block_memory()));
        const Borrowed memory(scratch_size(plan), there.device(), stream);
        const Tensors<T> t{static_cast<const T *>(x), static_cast<T *>(y), static_cast<const T *>(residual)};
        forward(plan, norm_, t, memory.data(), stream);
    }

    void sizes() {
        shape_ = shape(X);
        if (shape_.size() < 2)
            throw Failure{"x has " + std::to_string(shape_.size()) + " dimensions; expected (N, C, ...)"};
        rows_ = shape_[0];
        channels_ = shape_[1];
        positions_ = 1;
        for (std::size_t k = 2; k < shape_.size(); k++) positions_ *= shape_[k];
    }

    const char *name_of(std::size_t index) const {
        if (index < EXPONENTS) return NAMES[index];
        return index == node_.op->residual() ? "residual" : "exponents";
    }

    const OrtValue *value(std::size_t index) const {
        const OrtValue *found = nullptr;
        check(api_.KernelContext_GetInput(context_, index, &found));
        if (!found) throw Failure{std::string("the node has no input ") + name_of(index)};
        return found;
    }

    std::vector<std::int64_t> shape(std::size_t index) const {
        OrtTensorTypeAndShapeInfo *info = nullptr;
        check(api_.GetTensorTypeAndShape(value(index), &info));
        const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api_.ReleaseTensorTypeAndShapeInfo)> owner(
            info, api_.ReleaseTensorTypeAndShapeInfo);
        std::size_t rank = 0;
        check(api_.GetDimensionsCount(info, &rank));
        std::vector<std::int64_t> sizes(rank);
        check(api_.GetDimensions(info, sizes.data(), rank));
        return sizes;
    }

    void *data(const OrtValue *tensor) const {
        void *found = nullptr;
        check(api_.GetTensorMutableData(const_cast<OrtValue *>(tensor), &found));
        return found;
    }

    const void *input(std::size_t index) const { return data(value(index)); }

    template <class Value>
    const Value *vector(std::size_t index, std::int64_t size) const {
        const std::vector<std::int64_t> found = shape(index);
        if (found.size() != 1 || found[0] != size)
            throw Failure{std::string(name_of(index)) + " has " +
                          (found.size() == 1 ? std::to_string(found[0]) + " values" : "another shape") +
                          "; expected one dimension of " + std::to_string(size)};
        return static_cast<const Value *>(input(index));
    }

    void *output() const {
        OrtValue *y = nullptr;
        check(api_.KernelContext_GetOutput(context_, 0, shape_.data(), shape_.size(), &y));
        return data(y);
    }

    const Node &node_;
    const OrtApi &api_;
    OrtKernelContext *context_;
    Norm norm_;
    std::vector<std::int64_t> shape_;
    std::int64_t rows_ = 0, channels_ = 0, positions_ = 0;
};

}  // namespace

OrtStatus *AUGSERVE_ORT_CALL create_node(const OrtCustomOp *self, const OrtApi *api, const OrtKernelInfo *info,
                                         void **node) {
    const CustomOp &op = *static_cast<const CustomOp *>(self);
    return guarded(*api, op.name, [&] { *node = new Node{api, &op, norm_of(op, *api, info)}; });
}

OrtStatus *AUGSERVE_ORT_CALL run_node(void *node, OrtKernelContext *context) {
    const Node &self = *static_cast<const Node *>(node);
    return guarded(*self.api, self.op->name, [&] { Run(self, context)(); });
}

void AUGSERVE_ORT_CALL destroy_node(void *node) { delete static_cast<Node *>(node); }

}  // namespace augserve::cuda
