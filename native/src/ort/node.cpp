// A node on the processor. It holds its attributes; a run groups the rows by their ids and hands them to the kernels of the
// library, whose tasks run on the pool of the session.

#include <algorithm>
#include <atomic>
#include <new>
#include <thread>

#include "../../include/augserve.h"
#include "groups.hpp"
#include "reading.hpp"

namespace augserve::ort {
namespace {

struct Node {
    const OrtApi *api;
    const CustomOp *op;
    augserve_forward arguments;  // what the attributes say of them
};

void check_code(int code) {
    if (code != 0) throw Failure{augserve_message(code)};
}

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

void run(const Node &node, OrtKernelContext *context) {
    augserve_forward a = node.arguments;
    const Tensors tensors(*node.op, *node.api, context);
    a.rows = tensors.rows, a.channels = tensors.channels, a.positions = tensors.positions;
    a.x_layout = a.y_layout = {a.channels * a.positions, a.positions, 1};
    a.y = tensors.y();
    if (tensors.empty()) return;
    a.x = tensors.x();
    a.residual = tensors.residual();
    a.exponents = tensors.exponents();
    a.weight = tensors.vector<float>(WEIGHT, a.channels);
    a.bias = tensors.vector<float>(BIAS, a.channels);
    a.running_center = tensors.vector<float>(RUNNING_MEAN, a.channels);
    a.running_spread = tensors.vector<float>(RUNNING_SPREAD, a.channels);
    const Groups groups = group_rows(tensors.vector<std::int64_t>(GROUP, a.rows),
                                     tensors.vector<float>(TRACKED_WEIGHT, a.rows), std::size_t(a.rows));
    a.groups = std::int64_t(groups.count());
    if (groups.count() > 1) {
        a.order = groups.order.data();
        a.offsets = groups.offsets.data();
    }
    a.tracked_weight = groups.tracked_weight.data();
    a.threads = tasks_at_most();
    Pool pool(*node.api, context);
    check_code(augserve_run_forward(&a, pool.executor()));
    pool.check_tasks();
}

OrtStatus *AUGSERVE_ORT_CALL create_node(const OrtCustomOp *self, const OrtApi *api, const OrtKernelInfo *info,
                                         void **node) {
    const CustomOp &op = *static_cast<const CustomOp *>(self);
    return guarded(*api, op.name, [&] { *node = new Node{api, &op, arguments_of(op, Attributes(*api, info))}; });
}

OrtStatus *AUGSERVE_ORT_CALL run_node(void *node, OrtKernelContext *context) {
    const Node &self = *static_cast<const Node *>(node);
    return guarded(*self.api, self.op->name, [&] { run(self, context); });
}

void AUGSERVE_ORT_CALL destroy_node(void *node) { delete static_cast<Node *>(node); }

}  // namespace

const Provider provider{"CPUExecutionProvider", MEMORY_OF_PROVIDER, true, create_node, run_node, destroy_node};

}  // namespace augserve::ort
