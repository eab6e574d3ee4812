// See operators.hpp. A node's kernel holds its attributes; a run groups the rows by their ids and hands them to the
// kernels of the library, whose tasks run on the pool of the session.

#include "operators.hpp"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdio>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "../../include/augserve.h"
#include "groups.hpp"
#include "status.hpp"

namespace augserve::ort {

const Operator operators[OPERATORS] = {
    {"AugNorm", AUGSERVE_AUG, 0, "phi", true},
    {"AugNormAbove2", AUGSERVE_AUG, 0, "phi", true},
    {"BatchNorm", AUGSERVE_AUG, 2, nullptr, false},
    {"MedianNorm", AUGSERVE_AUG, 1, nullptr, false},
    {"MidrangeNorm", AUGSERVE_AUG, std::numeric_limits<double>::infinity(), nullptr, false},
    {"RobustNorm", AUGSERVE_ROBUST, 0, "p", false},
    {"RobustRangeNorm", AUGSERVE_ROBUST_RANGE, 0, "p", false},
    {"AugNormLearned", AUGSERVE_AUG, 2, nullptr, true, true},
};

const Ending endings[ENDINGS] = {{"", false, false}, {"Relu", false, true}, {"Add", true, false}, {"AddRelu", true, true}};

namespace {

// After these come, where the operator has them, exponents and the residual, in this order.
enum Input : std::size_t { X, WEIGHT, BIAS, RUNNING_MEAN, RUNNING_SPREAD, GROUP, TRACKED_WEIGHT, COMMON_INPUTS };
constexpr std::size_t EXPONENTS = COMMON_INPUTS;
std::size_t residual_of(const CustomOp &op) { return op.which->learned ? EXPONENTS + 1 : EXPONENTS; }

const char *name_of(const CustomOp &op, std::size_t index) {
    constexpr const char *names[COMMON_INPUTS] = {"x", "weight", "bias", "running_mean", "running_spread",
                                                  "group", "tracked_weight"};
    if (index < COMMON_INPUTS) return names[index];
    return index == residual_of(op) ? "residual" : "exponents";
}

void check_code(int code) {
    if (code != 0) throw Failure{augserve_message(code)};
}

// --- a node: its attributes -------------------------------------------------------------------------------------

struct Kernel {
    const OrtApi *api;
    const CustomOp *op;
    augserve_forward arguments;  // what the attributes say of them
};

class Attributes {
public:
    Attributes(const OrtApi &api, const OrtKernelInfo *info) : api_(api), info_(info) {}

    double number(const char *name) const {
        float value = 0;
        found(name, "a float", api_.KernelInfoGetAttribute_float(info_, name, &value));
        return double(value);
    }

    std::int64_t whole(const char *name) const {
        std::int64_t value = 0;
        found(name, "an int", api_.KernelInfoGetAttribute_int64(info_, name, &value));
        return value;
    }

private:
    void found(const char *name, const char *what, OrtStatus *status) const {
        if (!status) return;
        api_.ReleaseStatus(status);
        throw Failure{std::string("the node has no attribute ") + name + ", " + what};
    }

    const OrtApi &api_;
    const OrtKernelInfo *info_;
};

augserve_forward arguments_of(const CustomOp &op, const Attributes &attributes) {
    augserve_forward a{};
    a.kind = op.which->kind;
    a.dtype = op.type == FLOAT16 ? AUGSERVE_FLOAT16 : AUGSERVE_FLOAT32;
    a.threads = 1;
    a.relu = op.ending->relu;
    a.eps = attributes.number("eps");
    const char *exponent = op.which->exponent_attribute;
    a.exponent = exponent ? attributes.number(exponent) : op.which->exponent;
    a.rtol = op.which->solver ? attributes.number("rtol") : 1;
    a.max_steps = op.which->solver ? attributes.whole("max_steps") : 1;
    check_code(augserve_run_forward(&a, nullptr));  // without rows: are they in range?
    return a;
}

OrtStatus *AUGSERVE_ORT_CALL create_kernel(const OrtCustomOp *self, const OrtApi *api, const OrtKernelInfo *info,
                                           void **kernel) {
    const CustomOp &op = *static_cast<const CustomOp *>(self);
    return guarded(*api, op.name, [&] {
        *kernel = new Kernel{api, &op, arguments_of(op, Attributes(*api, info))};
    });
}

void AUGSERVE_ORT_CALL destroy_kernel(void *kernel) { delete static_cast<Kernel *>(kernel); }

// --- a run ------------------------------------------------------------------------------------------------------

// Tasks on the threads of the session. No exception leaves a task.
class Pool {
public:
    Pool(const OrtApi &api, const OrtKernelContext *context)
        : executor_{run, this}, api_(api), context_(context), status_(nullptr), out_of_memory_(false) {}

    const augserve_executor *executor() const { return &executor_; }

    void check_tasks() const {
        check(status_);
        if (out_of_memory_) throw std::bad_alloc();
    }

private:
    struct Job {
        void (*body)(void *argument, std::size_t task);
        void *argument;
        std::atomic<bool> *out_of_memory;
    };

    static void run(void *self, void (*body)(void *argument, std::size_t task), void *argument, std::size_t tasks) {
        Pool &pool = *static_cast<Pool *>(self);
        Job job{body, argument, &pool.out_of_memory_};
        pool.status_ = pool.api_.KernelContext_ParallelFor(pool.context_, one_task, tasks, 0, &job);
    }

    static void one_task(void *argument, std::size_t task) {
        const Job &job = *static_cast<const Job *>(argument);
        try {
            job.body(job.argument, task);
        } catch (...) {
            *job.out_of_memory = true;
        }
    }

    augserve_executor executor_;
    const OrtApi &api_;
    const OrtKernelContext *context_;
    OrtStatus *status_;
    std::atomic<bool> out_of_memory_;
};

// The runtime does not tell how many threads it has; more tasks than threads change no bit.
std::int64_t tasks_at_most() {
    static const std::int64_t threads = std::clamp<std::int64_t>(std::thread::hardware_concurrency(), 1, 64);
    return threads;
}

class Run {
public:
    Run(const Kernel &kernel, OrtKernelContext *context)
        : kernel_(kernel), api_(*kernel.api), context_(context), a_(kernel.arguments) {}

    void operator()() {
        sizes();
        void *y = output();
        if (a_.rows == 0 || a_.channels == 0 || a_.positions == 0) return;
        a_.y = y;
        a_.x = input(X);
        if (kernel_.op->which->learned) a_.exponents = vector<float>(EXPONENTS, a_.channels);
        if (kernel_.op->ending->residual) {
            const std::size_t residual = residual_of(*kernel_.op);
            if (shape(residual) != shape_) throw Failure{"residual has another shape than x"};
            a_.residual = input(residual);
        }
        a_.weight = vector<float>(WEIGHT, a_.channels);
        a_.bias = vector<float>(BIAS, a_.channels);
        a_.running_center = vector<float>(RUNNING_MEAN, a_.channels);
        a_.running_spread = vector<float>(RUNNING_SPREAD, a_.channels);
        const Groups groups = group_rows(vector<std::int64_t>(GROUP, a_.rows),
                                         vector<float>(TRACKED_WEIGHT, a_.rows), std::size_t(a_.rows));
        a_.groups = std::int64_t(groups.count());
        if (groups.count() > 1) {
            a_.order = groups.order.data();
            a_.offsets = groups.offsets.data();
        }
        a_.tracked_weight = groups.tracked_weight.data();
        a_.threads = tasks_at_most();
        Pool pool(api_, context_);
        check_code(augserve_run_forward(&a_, pool.executor()));
        pool.check_tasks();
    }

private:
    void sizes() {
        shape_ = shape(X);
        if (shape_.size() < 2)
            throw Failure{"x has " + std::to_string(shape_.size()) + " dimensions; expected (N, C, ...)"};
        a_.rows = shape_[0];
        a_.channels = shape_[1];
        a_.positions = 1;
        for (std::size_t k = 2; k < shape_.size(); k++) a_.positions *= shape_[k];
        a_.x_layout = a_.y_layout = {a_.channels * a_.positions, a_.positions, 1};
    }

    const OrtValue *value(std::size_t index) const {
        const OrtValue *found = nullptr;
        check(api_.KernelContext_GetInput(context_, index, &found));
        if (!found) throw Failure{std::string("the node has no input ") + name_of(*kernel_.op, index)};
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
            throw Failure{std::string(name_of(*kernel_.op, index)) + " has " +
                          (found.size() == 1 ? std::to_string(found[0]) + " values" : "another shape") +
                          "; expected one dimension of " + std::to_string(size)};
        return static_cast<const Value *>(input(index));
    }

    void *output() const {
        OrtValue *y = nullptr;
        check(api_.KernelContext_GetOutput(context_, 0, shape_.data(), shape_.size(), &y));
        return data(y);
    }

    const Kernel &kernel_;
    const OrtApi &api_;
    OrtKernelContext *context_;
    augserve_forward a_;
    std::vector<std::int64_t> shape_;
};

OrtStatus *AUGSERVE_ORT_CALL compute(void *kernel, OrtKernelContext *context) {
    const Kernel &self = *static_cast<const Kernel *>(kernel);
    return guarded(*self.api, self.op->name, [&] { Run(self, context)(); });
}

// --- what is known of a node beforehand -------------------------------------------------------------------------

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
    const CustomOp &op = *static_cast<const CustomOp *>(self);
    OrtStatus *status = guarded(*op.api, op.name, [&] {
        OrtTensorTypeAndShapeInfo *info = nullptr;  // of the context: not ours to release
        check(op.api->ShapeInferContext_GetInputTypeShape(context, X, &info));
        if (is_known(*op.api, info)) check(op.api->ShapeInferContext_SetOutputTypeShape(context, 0, info));
    });
    if (status) op.api->ReleaseStatus(status);  // some versions look at no status here; the run has its own checks
    return nullptr;
}

const char *AUGSERVE_ORT_CALL name(const OrtCustomOp *self) {
    return static_cast<const CustomOp *>(self)->name;
}

const char *AUGSERVE_ORT_CALL provider(const OrtCustomOp *) { return "CPUExecutionProvider"; }

int AUGSERVE_ORT_CALL input_type(const OrtCustomOp *self, std::size_t index) {
    const CustomOp &op = *static_cast<const CustomOp *>(self);
    if (index == X || index == residual_of(op)) return op.type;
    return index == GROUP ? INT64 : FLOAT;
}

int AUGSERVE_ORT_CALL output_type(const OrtCustomOp *self, std::size_t) {
    return static_cast<const CustomOp *>(self)->type;
}

std::size_t AUGSERVE_ORT_CALL inputs(const OrtCustomOp *self) {
    const CustomOp &op = *static_cast<const CustomOp *>(self);
    return residual_of(op) + (op.ending->residual ? 1 : 0);
}

std::size_t AUGSERVE_ORT_CALL outputs(const OrtCustomOp *) { return 1; }

int AUGSERVE_ORT_CALL required(const OrtCustomOp *, std::size_t) { return 0; }

int AUGSERVE_ORT_CALL default_memory(const OrtCustomOp *, std::size_t) { return 0; }

int AUGSERVE_ORT_CALL not_variadic(const OrtCustomOp *) { return 1; }

int AUGSERVE_ORT_CALL first_version(const OrtCustomOp *) { return 1; }

int AUGSERVE_ORT_CALL last_version(const OrtCustomOp *) { return INT_MAX; }

}  // namespace

CustomOp custom_op(const OrtApi &api, const Operator &which, const Ending &ending, ElementType type) {
    CustomOp op{};
    op.version = API_VERSION;
    op.GetName = name;
    op.GetExecutionProviderType = provider;
    op.GetInputType = input_type;
    op.GetInputTypeCount = inputs;
    op.GetOutputType = output_type;
    op.GetOutputTypeCount = outputs;
    op.KernelDestroy = destroy_kernel;
    op.GetInputCharacteristic = required;
    op.GetOutputCharacteristic = required;
    op.GetInputMemoryType = default_memory;
    op.GetVariadicInputMinArity = not_variadic;
    op.GetVariadicInputHomogeneity = not_variadic;
    op.GetVariadicOutputMinArity = not_variadic;
    op.GetVariadicOutputHomogeneity = not_variadic;
    op.CreateKernelV2 = create_kernel;
    op.KernelComputeV2 = compute;
    op.InferOutputShapeFn = infer_shape;
    op.GetStartVersion = first_version;
    op.GetEndVersion = last_version;
    op.api = &api;
    op.which = &which;
    op.ending = &ending;
    std::snprintf(op.name, sizeof op.name, "%s%s", which.name, ending.suffix);
    op.type = type;
    return op;
}

}  // namespace augserve::ort
