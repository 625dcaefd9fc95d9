#include "ort/api.h"

#include <cstring>

namespace onnx_moe::ort {

namespace {

struct ReleaseShapeInfo {
  const OrtApi* api;
  void operator()(OrtTensorTypeAndShapeInfo* info) const { ReleaseTensorTypeAndShapeInfo(api, info); }
};
using ShapeInfo = std::unique_ptr<OrtTensorTypeAndShapeInfo, ReleaseShapeInfo>;

struct ReleaseType {
  const OrtApi* api;
  void operator()(OrtTypeInfo* info) const { ReleaseTypeInfo(api, info); }
};

// True when the status says that the attribute is not there; other failures throw. The status is released.
bool is_absent(const OrtApi* api, OrtStatus* status) {
  if (!status) return false;
  // The C API has no code of its own for it: a wrong type fails with the same code and another text.
  if (std::strstr(GetErrorMessage(api, status), "No attribute with name")) {
    ReleaseStatus(api, status);
    return true;
  }
  check(api, status);
  return false;
}

}  // namespace

void check(const OrtApi* api, OrtStatus* status) {
  if (!status) return;
  const std::string message = GetErrorMessage(api, status);
  ReleaseStatus(api, status);
  throw Error(message);
}

Shape read_shape(const OrtApi* api, const OrtTensorTypeAndShapeInfo* info) {
  Shape shape;
  check(api, GetTensorElementType(api, info, &shape.type));
  shape.has_rank = TensorTypeAndShape_HasShape(api, info);
  if (!shape.has_rank) return shape;
  size_t rank = 0;
  check(api, GetDimensionsCount(api, info, &rank));
  shape.dimensions.resize(rank);
  check(api, GetDimensions(api, info, shape.dimensions.data(), rank));
  std::vector<const char*> symbols(rank, "");
  check(api, GetSymbolicDimensions(api, info, symbols.data(), rank));
  shape.symbols.assign(symbols.begin(), symbols.end());
  return shape;
}

int64_t element_bytes(int type) {
  switch (type) {
    case kUint8:
      return 1;
    case kFloat16:
    case kBFloat16:
      return 2;
    case kFloat:
    case kInt32:
      return 4;
    default:
      fail("element type ", type, " is none of the operators'");
  }
}

ConstTensor::ConstTensor(const OrtApi* api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, GetTensorTypeAndShape(api, value, &info));
  const ShapeInfo owner(info, ReleaseShapeInfo{api});
  check(api, GetTensorElementType(api, info, &type_));
  size_t rank = 0;
  check(api, GetDimensionsCount(api, info, &rank));
  dimensions_.resize(rank);
  check(api, GetDimensions(api, info, dimensions_.data(), rank));
  check(api, GetTensorData(api, value, &data_));
}

std::string KernelInfo::node_name() const {
  size_t size = 0;
  check(api_, KernelInfo_GetNodeName(api_, info_, nullptr, &size));
  std::string name(size, '\0');
  check(api_, KernelInfo_GetNodeName(api_, info_, name.data(), &size));
  name.resize(size > 0 ? size - 1 : 0);  // the size counts the terminator
  return name;
}

size_t KernelInfo::input_count() const {
  size_t count = 0;
  check(api_, KernelInfo_GetInputCount(api_, info_, &count));
  return count;
}

std::optional<Shape> KernelInfo::input_shape(size_t index) const {
  if (index >= input_count()) return std::nullopt;
  OrtTypeInfo* type = nullptr;
  if (OrtStatus* status = KernelInfo_GetInputTypeInfo(api_, info_, index, &type)) {
    ReleaseStatus(api_, status);  // an optional input that is left out has no type
    return std::nullopt;
  }
  const std::unique_ptr<OrtTypeInfo, ReleaseType> owner(type, ReleaseType{api_});
  const OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api_, CastTypeInfoToTensorInfo(api_, type, &info));
  if (!info) return std::nullopt;
  return read_shape(api_, info);
}

std::optional<int64_t> KernelInfo::int_attribute(const std::string& name) const {
  int64_t value = 0;
  if (is_absent(api_, KernelInfoGetAttribute_int64(api_, info_, name.c_str(), &value))) return std::nullopt;
  return value;
}

std::optional<float> KernelInfo::float_attribute(const std::string& name) const {
  float value = 0;
  if (is_absent(api_, KernelInfoGetAttribute_float(api_, info_, name.c_str(), &value))) return std::nullopt;
  return value;
}

std::optional<std::string> KernelInfo::string_attribute(const std::string& name) const {
  size_t size = 0;
  if (is_absent(api_, KernelInfoGetAttribute_string(api_, info_, name.c_str(), nullptr, &size))) return std::nullopt;
  std::string value(size, '\0');
  check(api_, KernelInfoGetAttribute_string(api_, info_, name.c_str(), value.data(), &size));
  value.resize(size > 0 ? size - 1 : 0);
  return value;
}

std::optional<std::string> KernelInfo::config_entry(const std::string& key) const {
  OrtKeyValuePairs* entries = nullptr;
  check(api_, KernelInfo_GetConfigEntries(api_, info_, &entries));
  const char* const value = GetKeyValue(api_, entries, key.c_str());
  std::optional<std::string> result;
  if (value) result = value;
  ReleaseKeyValuePairs(api_, entries);
  return result;
}

std::optional<ConstTensor> KernelInfo::constant_input(size_t index) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(api_, KernelInfoGetConstantInput_tensor(api_, info_, index, &is_constant, &value));
  if (!is_constant) return std::nullopt;
  return ConstTensor(api_, value);
}

Logger KernelInfo::logger() const {
  const OrtLogger* logger = nullptr;
  check(api_, KernelInfo_GetLogger(api_, info_, &logger));
  return Logger(api_, logger);
}

void Logger::warn(const std::string& message) const { log(2, message); }

void Logger::note(const std::string& message) const { log(1, message); }

void Logger::log(int severity, const std::string& message) const {
  check(api_, Logger_LogMessage(api_, logger_, severity, message.c_str(), "onnx_moe", 0, "Logger"));
}

OrtAllocator* KernelInfo::allocator() const {
  OrtAllocator* allocator = nullptr;
  check(api_, KernelInfoGetAllocator(api_, info_, /*OrtMemTypeDefault*/ 0, &allocator));
  return allocator;
}

std::optional<ConstTensor> KernelContext::input(size_t index) const {
  size_t count = 0;
  check(api_, KernelContext_GetInputCount(api_, context_, &count));
  if (index >= count) return std::nullopt;
  const OrtValue* value = nullptr;
  check(api_, KernelContext_GetInput(api_, context_, index, &value));
  if (!value) return std::nullopt;
  return ConstTensor(api_, value);
}

ConstTensor KernelContext::required_input(size_t index, const char* name) const {
  const std::optional<ConstTensor> tensor = input(index);
  require(tensor.has_value(), "input ", index, " (", name, ") is missing");
  return *tensor;
}

void* KernelContext::output(size_t index, const Dimensions& dimensions) const {
  size_t count = 0;
  check(api_, KernelContext_GetOutputCount(api_, context_, &count));
  if (index >= count) return nullptr;
  OrtValue* value = nullptr;
  check(api_, KernelContext_GetOutput(api_, context_, index, dimensions.data(), dimensions.size(), &value));
  if (!value) return nullptr;
  void* data = nullptr;
  check(api_, GetTensorMutableData(api_, value, &data));
  return data;
}

void KernelContext::parallel_for(Task task, void* state, size_t count) {
  // As many batches as tasks: the pool's threads then claim tasks one by one, and finish together.
  check(api_, KernelContext_ParallelFor(api_, context_, task, count, count, state));
}

std::optional<Shape> ShapeInference::input(size_t index) const {
  size_t count = 0;
  check(api_, ShapeInferContext_GetInputCount(api_, context_, &count));
  if (index >= count) return std::nullopt;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  if (OrtStatus* status = ShapeInferContext_GetInputTypeShape(api_, context_, index, &info)) {
    ReleaseStatus(api_, status);
    return std::nullopt;
  }
  if (!info) return std::nullopt;
  Shape shape = read_shape(api_, info);             // the context owns it
  if (shape.type == kAnyType) return std::nullopt;  // an input that is left out, but named ""
  return shape;
}

std::optional<int64_t> ShapeInference::int_attribute(const char* name) const {
  const OrtOpAttr* attribute = nullptr;
  if (OrtStatus* status = ShapeInferContext_GetAttribute(api_, context_, name, &attribute)) {
    ReleaseStatus(api_, status);
    return std::nullopt;
  }
  if (!attribute) return std::nullopt;
  int64_t value = 0;
  size_t size = 0;
  check(api_, ReadOpAttr(api_, attribute, kAttributeInt, &value, sizeof value, &size));
  return value;
}

void ShapeInference::set_output(size_t index, const Shape& shape) const {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(api_, CreateTensorTypeAndShapeInfo(api_, &raw));
  const ShapeInfo info(raw, ReleaseShapeInfo{api_});
  check(api_, SetTensorElementType(api_, raw, shape.type));
  check(api_, SetDimensions(api_, raw, shape.dimensions.data(), shape.rank()));
  std::vector<const char*> symbols;
  for (const std::string& symbol : shape.symbols) symbols.push_back(symbol.c_str());
  check(api_, SetSymbolicDimensions(api_, raw, symbols.data(), symbols.size()));
  check(api_, ShapeInferContext_SetOutputTypeShape(api_, context_, index, raw));
}

}  // namespace onnx_moe::ort
