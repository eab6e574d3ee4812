// The one function that ONNX Runtime looks for in a library of operators.
//
// Sessions keep pointers to the domain and its operators: both stay for as long as the library is loaded, one set
// for each runtime of the process, and nothing runs at its end, when sessions may still be there.

#include <cstddef>
#include <iterator>
#include <mutex>

#include "operators.hpp"
#include "status.hpp"

#if defined(_WIN32)
#define AUGSERVE_EXPORT extern "C" __declspec(dllexport)
#else
#define AUGSERVE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace augserve::ort {
namespace {

constexpr ElementType TYPES[] = {FLOAT, FLOAT16};

struct Registration {
    const OrtApi *api;  // nullptr: not made yet
    OrtCustomOpDomain *domain;
    CustomOp ops[OPERATORS * ENDINGS * std::size(TYPES)];
    Registration *next;
};

Registration first;
std::mutex mutex;

void make(Registration &registration, const OrtApi &api) {
    check(api.CreateCustomOpDomain(DOMAIN_NAME, &registration.domain));
    CustomOp *op = registration.ops;
    for (const Operator &which : operators)
        for (const Ending &ending : endings)
            for (const ElementType type : TYPES) {
                *op = custom_op(api, which, ending, type);
                check(api.CustomOpDomain_Add(registration.domain, op++));
            }
    registration.api = &api;
}

OrtCustomOpDomain *domain_of(const OrtApi &api) {
    const std::lock_guard<std::mutex> lock(mutex);
    Registration *found = &first;
    while (found->api && found->api != &api) {
        if (!found->next) found->next = new Registration{};
        found = found->next;
    }
    if (!found->api) make(*found, api);
    return found->domain;
}

}  // namespace
}  // namespace augserve::ort

AUGSERVE_EXPORT OrtStatus *AUGSERVE_ORT_CALL RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    using namespace augserve::ort;
    const OrtApi *api = base->GetApi(API_VERSION);
    if (!api) {
        constexpr char text[] = "augserve's operators need ONNX Runtime 1.18 or newer";
        const OrtApi *oldest = base->GetApi(1);  // whose first slot is there in every version
        return oldest ? oldest->CreateStatus(FAIL, text) : nullptr;
    }
    return guarded(*api, "RegisterCustomOps", [&] { check(api->AddCustomOpDomain(options, domain_of(*api))); });
}
