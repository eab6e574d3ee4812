// A node of a graph: it holds its attributes; a run checks the inputs, groups the rows on the host and launches kernels
// on the stream of the run.

#include <cmath>

#include "../../../src/ort/groups.hpp"
#include "../../../src/ort/reading.hpp"
#include "../forward.hpp"
#include "memory.hpp"
#include "stream.hpp"

namespace augserve::cuda {
namespace {

using namespace ort;

struct Node {
    const OrtApi *api;
    const CustomOp *op;
    Norm norm;  // what the attributes say of it
};

Norm norm_of(const CustomOp &op, const Attributes &attributes) {
    Norm norm{};
    norm.kind = op.which->kind;
    norm.relu = op.ending->relu;
    norm.eps = attributes.number("eps");
    const char *exponent = op.which->exponent_attribute;
    norm.exponent = exponent ? attributes.number(exponent) : op.which->exponent;
    const bool aug = norm.kind == AUGSERVE_AUG;
    if (aug ? !(norm.exponent >= 1) : !(norm.exponent > 0 && std::isfinite(norm.exponent)))
        throw Failure{"the exponent is out of range: phi in [1, inf], p positive"};
    norm.rtol = op.which->solver ? attributes.number("rtol") : 1;
    const std::int64_t max_steps = op.which->solver ? attributes.whole("max_steps") : 1;
    if (!(norm.rtol > 0) || max_steps < 1 || max_steps > 1000000)
        throw Failure{"rtol must be positive and max_steps at least 1"};
    norm.max_steps = std::int32_t(max_steps);
    return norm;
}

template <class T>
void compute(const Norm &norm, const Groups &groups, const void *x, void *y, const void *residual, Stream stream) {
    const OnDeviceOf there(x);
    const Plan plan = cuda::plan(groups.order, groups.offsets, groups.tracked_weight, norm.channels,
                                 norm.positions.by, limits_of(there.block_memory()));
    const Borrowed memory(scratch_size(plan), there.device(), stream);
    const cuda::Tensors<T> t{static_cast<const T *>(x), static_cast<T *>(y), static_cast<const T *>(residual)};
    forward(plan, norm, t, memory.data(), stream);
}

void run(const Node &node, OrtKernelContext *context) {
    const ort::Tensors tensors(*node.op, *node.api, context);
    void *y = tensors.y();
    if (tensors.empty()) return;
    Norm norm = node.norm;
    norm.exponents = tensors.exponents();
    const void *residual = tensors.residual();
    norm.weight = tensors.vector<float>(WEIGHT, tensors.channels);
    norm.bias = tensors.vector<float>(BIAS, tensors.channels);
    norm.running_center = tensors.vector<float>(RUNNING_MEAN, tensors.channels);
    norm.running_spread = tensors.vector<float>(RUNNING_SPREAD, tensors.channels);
    const Groups groups = group_rows(tensors.vector<std::int64_t>(GROUP, tensors.rows),
                                     tensors.vector<float>(TRACKED_WEIGHT, tensors.rows), std::size_t(tensors.rows));
    const std::int64_t most = std::int64_t(1) << 30;  // plan() looks at the products
    if (tensors.channels > most || tensors.positions > most)
        throw Failure{"x is too large: a row has up to 2^30 values"};
    norm.channels = std::uint32_t(tensors.channels);
    norm.positions = divisor(std::uint32_t(tensors.positions));
    const Stream stream = static_cast<Stream>(compute_stream(*node.api, context));
    if (node.op->type == FLOAT16)
        compute<Half>(norm, groups, tensors.x(), y, residual, stream);
    else
        compute<float>(norm, groups, tensors.x(), y, residual, stream);
}

OrtStatus *AUGSERVE_ORT_CALL create_node(const OrtCustomOp *self, const OrtApi *api, const OrtKernelInfo *info,
                                         void **node) {
    const CustomOp &op = *static_cast<const CustomOp *>(self);
    return guarded(*api, op.name, [&] { *node = new Node{api, &op, norm_of(op, Attributes(*api, info))}; });
}

OrtStatus *AUGSERVE_ORT_CALL run_node(void *node, OrtKernelContext *context) {
    const Node &self = *static_cast<const Node *>(node);
    return guarded(*self.api, self.op->name, [&] { run(self, context); });
}

void AUGSERVE_ORT_CALL destroy_node(void *node) { delete static_cast<Node *>(node); }

}  // namespace
}  // namespace augserve::cuda

namespace augserve::ort {

// `group` and `tracked_weight` are asked for in memory of the host, where they come from: the groups are sorted, checked
// and planned for there, each launch has the grid that its groups need, and no kernel waits for another one's sizes.
#ifdef AUGSERVE_EMULATED
const Provider provider{"CPUExecutionProvider", MEMORY_OF_HOST, false, cuda::create_node, cuda::run_node, cuda::destroy_node};
#else
const Provider provider{"CUDAExecutionProvider", MEMORY_OF_HOST, false, cuda::create_node, cuda::run_node, cuda::destroy_node};
#endif

}  // namespace augserve::ort
