// The slice of ONNX Runtime's C ABI that the plugin uses. No ONNX Runtime header is needed to build it.
//
// OrtApi is an append-only table of function pointers: a function's slot and signature never change. OrtCustomOp is
// append-only too, and its `version` says how many of its fields are there.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtApi;
struct OrtStatus;
struct OrtValue;
struct OrtTypeInfo;
struct OrtTensorTypeAndShapeInfo;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtOpAttr;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtLogger;
struct OrtKeyValuePairs;
struct OrtMemoryInfo;

struct OrtAllocator {
  uint32_t version;
  void* (*Alloc)(OrtAllocator*, size_t);
  void (*Free)(OrtAllocator*, void*);
  const OrtMemoryInfo* (*Info)(const OrtAllocator*);
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

}  // extern "C"

static_assert(sizeof(void*) != 8 || sizeof(OrtCustomOp) == 26 * sizeof(void*), "OrtCustomOp of API 24 has 26 words");

namespace onnx_moe::ort {

// API 24 came with ONNX Runtime 1.24; every slot below is older or of that version.
inline constexpr uint32_t kApiVersion = 24;
inline constexpr const char* kOldestRuntime = "1.24.4";

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
enum OpAttributeType : int { kAttributeInt = 1 };

// ONNX's numbers of tensor element types, in the order of the C enum.
enum TensorType : int { kAnyType = 0, kFloat = 1, kUint8 = 2, kInt32 = 6, kFloat16 = 10, kBFloat16 = 16 };

template <size_t Slot, typename Signature>
struct Function;

// A function of OrtApi: its slot and its signature.
template <size_t Slot, typename Result, typename... Arguments>
struct Function<Slot, Result(Arguments...)> {
  Result operator()(const OrtApi* api, Arguments... arguments) const {
    using Pointer = Result (*)(Arguments...);
    return reinterpret_cast<Pointer const*>(api)[Slot](arguments...);
  }
};

inline constexpr Function<0, OrtStatus*(int, const char*)> CreateStatus{};
inline constexpr Function<2, const char*(const OrtStatus*)> GetErrorMessage{};
inline constexpr Function<26, OrtStatus*(const char*, OrtCustomOpDomain**)> CreateCustomOpDomain{};
inline constexpr Function<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)> CustomOpDomain_Add{};
inline constexpr Function<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)> AddCustomOpDomain{};
inline constexpr Function<51, OrtStatus*(OrtValue*, void**)> GetTensorMutableData{};
inline constexpr Function<55, OrtStatus*(const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**)>
    CastTypeInfoToTensorInfo{};
inline constexpr Function<57, OrtStatus*(OrtTensorTypeAndShapeInfo**)> CreateTensorTypeAndShapeInfo{};
inline constexpr Function<58, OrtStatus*(OrtTensorTypeAndShapeInfo*, int)> SetTensorElementType{};
inline constexpr Function<59, OrtStatus*(OrtTensorTypeAndShapeInfo*, const int64_t*, size_t)> SetDimensions{};
inline constexpr Function<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int*)> GetTensorElementType{};
inline constexpr Function<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)> GetDimensionsCount{};
inline constexpr Function<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)> GetDimensions{};
inline constexpr Function<63, OrtStatus*(const OrtTensorTypeAndShapeInfo*, const char**, size_t)>
    GetSymbolicDimensions{};
inline constexpr Function<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)> GetTensorTypeAndShape{};
inline constexpr Function<85, OrtStatus*(const OrtKernelInfo*, const char*, float*)> KernelInfoGetAttribute_float{};
inline constexpr Function<86, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)> KernelInfoGetAttribute_int64{};
inline constexpr Function<87, OrtStatus*(const OrtKernelInfo*, const char*, char*, size_t*)>
    KernelInfoGetAttribute_string{};
inline constexpr Function<88, OrtStatus*(const OrtKernelContext*, size_t*)> KernelContext_GetInputCount{};
inline constexpr Function<89, OrtStatus*(const OrtKernelContext*, size_t*)> KernelContext_GetOutputCount{};
inline constexpr Function<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)> KernelContext_GetInput{};
inline constexpr Function<91, OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>
    KernelContext_GetOutput{};
inline constexpr Function<93, void(OrtStatus*)> ReleaseStatus{};
inline constexpr Function<98, void(OrtTypeInfo*)> ReleaseTypeInfo{};
inline constexpr Function<99, void(OrtTensorTypeAndShapeInfo*)> ReleaseTensorTypeAndShapeInfo{};
inline constexpr Function<230, OrtStatus*(const OrtKernelInfo*, size_t*)> KernelInfo_GetInputCount{};
inline constexpr Function<234, OrtStatus*(const OrtKernelInfo*, size_t, OrtTypeInfo**)> KernelInfo_GetInputTypeInfo{};
inline constexpr Function<244, OrtStatus*(const OrtKernelInfo*, char*, size_t*)> KernelInfo_GetNodeName{};
inline constexpr Function<245, OrtStatus*(const OrtKernelInfo*, const OrtLogger**)> KernelInfo_GetLogger{};
inline constexpr Function<247, OrtStatus*(const OrtLogger*, int, const char*, const char*, int, const char*)>
    Logger_LogMessage{};
inline constexpr Function<249, OrtStatus*(const OrtKernelInfo*, size_t, int*, const OrtValue**)>
    KernelInfoGetConstantInput_tensor{};
inline constexpr Function<267, OrtStatus*(const OrtShapeInferContext*, size_t*)> ShapeInferContext_GetInputCount{};
inline constexpr Function<268, OrtStatus*(const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**)>
    ShapeInferContext_GetInputTypeShape{};
inline constexpr Function<269, OrtStatus*(const OrtShapeInferContext*, const char*, const OrtOpAttr**)>
    ShapeInferContext_GetAttribute{};
inline constexpr Function<270, OrtStatus*(const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*)>
    ShapeInferContext_SetOutputTypeShape{};
inline constexpr Function<271, OrtStatus*(OrtTensorTypeAndShapeInfo*, const char**, size_t)> SetSymbolicDimensions{};
inline constexpr Function<272, OrtStatus*(const OrtOpAttr*, int, void*, size_t, size_t*)> ReadOpAttr{};
inline constexpr Function<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>
    KernelContext_ParallelFor{};
inline constexpr Function<278, OrtStatus*(const OrtKernelInfo*, int, OrtAllocator**)> KernelInfoGetAllocator{};
inline constexpr Function<297, const char*(const OrtKeyValuePairs*, const char*)> GetKeyValue{};
inline constexpr Function<300, void(OrtKeyValuePairs*)> ReleaseKeyValuePairs{};
inline constexpr Function<378, OrtStatus*(const OrtValue*, const void**)> GetTensorData{};
inline constexpr Function<390, bool(const OrtTensorTypeAndShapeInfo*)> TensorTypeAndShape_HasShape{};
inline constexpr Function<391, OrtStatus*(const OrtKernelInfo*, OrtKeyValuePairs**)> KernelInfo_GetConfigEntries{};

}  // namespace onnx_moe::ort
