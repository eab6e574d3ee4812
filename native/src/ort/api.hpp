// What of ONNX Runtime's C API the operators use: a table of function pointers that later versions only append to,
// so that a few slots with their numbers are enough for every version from 1.18 on. Names are ONNX Runtime's own.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define AUGSERVE_ORT_CALL __stdcall
#else
#define AUGSERVE_ORT_CALL
#endif

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;
struct OrtCustomOp;

namespace augserve::ort {

constexpr std::uint32_t API_VERSION = 18;

enum ErrorCode : int { FAIL = 1, INVALID_ARGUMENT = 2 };
enum ElementType : int { FLOAT = 1, INT64 = 7, FLOAT16 = 10 };

// A slot of the table. Those that are not used have another type, so that calling one does not compile.
template <class Result, class... Arguments>
using Call = Result(AUGSERVE_ORT_CALL *)(Arguments...);
template <class... Arguments>
using Checked = Call<OrtStatus *, Arguments...>;  // nullptr: no error
using Unused = void *;

}  // namespace augserve::ort

struct OrtApi {
    template <class... Arguments>
    using Checked = augserve::ort::Checked<Arguments...>;
    template <class... Arguments>
    using Void = augserve::ort::Call<void, Arguments...>;
    using Unused = augserve::ort::Unused;
    using Info = OrtTensorTypeAndShapeInfo;

    augserve::ort::Call<OrtStatus *, int, const char *> CreateStatus;  // 0
    Unused from_1[25];
    Checked<const char *, OrtCustomOpDomain **> CreateCustomOpDomain;               // 26
    Checked<OrtCustomOpDomain *, const OrtCustomOp *> CustomOpDomain_Add;           // 27
    Checked<OrtSessionOptions *, OrtCustomOpDomain *> AddCustomOpDomain;            // 28
    Unused from_29[22];
    Checked<OrtValue *, void **> GetTensorMutableData;                              // 51
    Unused from_52[9];
    Checked<const Info *, std::size_t *> GetDimensionsCount;                        // 61
    Checked<const Info *, std::int64_t *, std::size_t> GetDimensions;               // 62
    Checked<const Info *, const char **, std::size_t> GetSymbolicDimensions;        // 63
    Unused from_64[1];
    Checked<const OrtValue *, Info **> GetTensorTypeAndShape;                       // 65
    Unused from_66[19];
    Checked<const OrtKernelInfo *, const char *, float *> KernelInfoGetAttribute_float;          // 85
    Checked<const OrtKernelInfo *, const char *, std::int64_t *> KernelInfoGetAttribute_int64;   // 86
    Unused from_87[3];
    Checked<const OrtKernelContext *, std::size_t, const OrtValue **> KernelContext_GetInput;    // 90
    Checked<OrtKernelContext *, std::size_t, const std::int64_t *, std::size_t, OrtValue **>
        KernelContext_GetOutput;                                                                 // 91
    Unused from_92[1];
    Void<OrtStatus *> ReleaseStatus;                                                // 93
    Unused from_94[5];
    Void<Info *> ReleaseTensorTypeAndShapeInfo;                                     // 99
    Unused from_100[168];
    Checked<const OrtShapeInferContext *, std::size_t, Info **> ShapeInferContext_GetInputTypeShape;  // 268
    Unused from_269[1];
    Checked<const OrtShapeInferContext *, std::size_t, const Info *> ShapeInferContext_SetOutputTypeShape;  // 270
    Unused from_271[3];
    // (context, body, total, batches, argument): calls body(argument, i) for i < total; with batches = 0 the
    // runtime chooses how many.
    Checked<const OrtKernelContext *, void (*)(void *, std::size_t), std::size_t, std::size_t, void *>
        KernelContext_ParallelFor;                                                  // 274
};

struct OrtApiBase {
    augserve::ort::Call<const OrtApi *, std::uint32_t> GetApi;
    augserve::ort::Call<const char *> GetVersionString;
};

struct OrtCustomOp {
    template <class Result, class... Arguments>
    using Getter = augserve::ort::Call<Result, const OrtCustomOp *, Arguments...>;
    template <class Result, class... Arguments>
    using Call = augserve::ort::Call<Result, Arguments...>;

    std::uint32_t version;
    Getter<void *, const OrtApi *, const OrtKernelInfo *> CreateKernel;
    Getter<const char *> GetName, GetExecutionProviderType;
    Getter<int, std::size_t> GetInputType;
    Getter<std::size_t> GetInputTypeCount;
    Getter<int, std::size_t> GetOutputType;
    Getter<std::size_t> GetOutputTypeCount;
    Call<void, void *, OrtKernelContext *> KernelCompute;
    Call<void, void *> KernelDestroy;
    Getter<int, std::size_t> GetInputCharacteristic, GetOutputCharacteristic;
    Getter<int, std::size_t> GetInputMemoryType;
    Getter<int> GetVariadicInputMinArity, GetVariadicInputHomogeneity;
    Getter<int> GetVariadicOutputMinArity, GetVariadicOutputHomogeneity;
    Getter<OrtStatus *, const OrtApi *, const OrtKernelInfo *, void **> CreateKernelV2;
    Call<OrtStatus *, void *, OrtKernelContext *> KernelComputeV2;
    Getter<OrtStatus *, OrtShapeInferContext *> InferOutputShapeFn;
    Getter<int> GetStartVersion, GetEndVersion;
    Call<std::size_t, int **, int **> GetMayInplace;
    Call<void, int *, int *> ReleaseMayInplace;
    Call<std::size_t, int **, int **> GetAliasMap;
    Call<void, int *, int *> ReleaseAliasMap;
};

namespace augserve::ort {

#define AUGSERVE_ORT_SLOT(name, number) \
    static_assert(offsetof(OrtApi, name) == (number) * sizeof(void *), #name " is slot " #number)
AUGSERVE_ORT_SLOT(CreateStatus, 0);
AUGSERVE_ORT_SLOT(CreateCustomOpDomain, 26);
AUGSERVE_ORT_SLOT(CustomOpDomain_Add, 27);
AUGSERVE_ORT_SLOT(AddCustomOpDomain, 28);
AUGSERVE_ORT_SLOT(GetTensorMutableData, 51);
AUGSERVE_ORT_SLOT(GetDimensionsCount, 61);
AUGSERVE_ORT_SLOT(GetDimensions, 62);
AUGSERVE_ORT_SLOT(GetSymbolicDimensions, 63);
AUGSERVE_ORT_SLOT(GetTensorTypeAndShape, 65);
AUGSERVE_ORT_SLOT(KernelInfoGetAttribute_float, 85);
AUGSERVE_ORT_SLOT(KernelInfoGetAttribute_int64, 86);
AUGSERVE_ORT_SLOT(KernelContext_GetInput, 90);
AUGSERVE_ORT_SLOT(KernelContext_GetOutput, 91);
AUGSERVE_ORT_SLOT(ReleaseStatus, 93);
AUGSERVE_ORT_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
AUGSERVE_ORT_SLOT(ShapeInferContext_GetInputTypeShape, 268);
AUGSERVE_ORT_SLOT(ShapeInferContext_SetOutputTypeShape, 270);
AUGSERVE_ORT_SLOT(KernelContext_ParallelFor, 274);
#undef AUGSERVE_ORT_SLOT

static_assert(sizeof(OrtCustomOp) == 26 * sizeof(void *), "a version and 25 functions");
static_assert(offsetof(OrtCustomOp, KernelDestroy) == 9 * sizeof(void *), "in this order");
static_assert(offsetof(OrtCustomOp, CreateKernelV2) == 17 * sizeof(void *), "in this order");
static_assert(offsetof(OrtCustomOp, GetMayInplace) == 22 * sizeof(void *), "in this order");

}  // namespace augserve::ort
