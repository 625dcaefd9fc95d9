// What the operators' ONNX Runtime kernels share: the node's name in every error, attributes read by the definition,
// shapes and types checked when the kernel is made (what the graph declares) and when it runs (what arrives).
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/element_type.h"
#include "operators/definition.h"
#include "ort/api.h"

namespace onnx_moe {

using ort::Dimensions;

// A dimension that the graph leaves open; it fits everything.
inline constexpr int64_t kUnknown = -1;

inline bool fits(int64_t actual, int64_t expected) {
  return actual == expected || actual == kUnknown || expected == kUnknown;
}

// The name of an input, in two parts: put together only where an error says it.
struct InputName {
  const char* prefix;
  const char* name;
};

// Throws unless `actual` fits `expected`; `meaning` is the shape in the definition's letters.
void expect_shape(const InputName& input, const Dimensions& actual, const Dimensions& expected, const char* meaning);
inline void expect_shape(const char* input, const Dimensions& actual, const Dimensions& expected, const char* meaning) {
  expect_shape(InputName{"", input}, actual, expected, meaning);
}

std::string to_string(const Dimensions& dimensions);
std::string type_name(int type);

// Attributes of a node with the definition's defaults; choices and ranges are checked.
class Attributes {
 public:
  Attributes(const ort::KernelInfo& info, const OperatorDefinition& definition);

  int64_t integer(const std::string& name) const { return integers_.at(name); }
  float number(const std::string& name) const { return numbers_.at(name); }
  const std::string& text(const std::string& name) const { return texts_.at(name); }

 private:
  void read(const ort::KernelInfo& info, const AttributeDefinition& attribute);

  std::map<std::string, int64_t> integers_;
  std::map<std::string, float> numbers_;
  std::map<std::string, std::string> texts_;
};

// Shapes of a node's inputs; nothing for one that is left out or whose rank is open.
inline constexpr size_t kMostInputs = 13;
using InputShapes = std::array<std::optional<Dimensions>, kMostInputs>;

class OperatorKernel {
 public:
  // `type` is the element type T that this kernel was registered for.
  OperatorKernel(const OrtApi* api, const ort::KernelInfo& info, const OperatorDefinition& definition, int type);
  virtual ~OperatorKernel() = default;
  OperatorKernel(const OperatorKernel&) = delete;
  OperatorKernel& operator=(const OperatorKernel&) = delete;

  OrtStatus* run(OrtKernelContext* context);

 protected:
  virtual void compute(ort::KernelContext& context) = 0;

  ElementType type() const { return type_; }
  // Element type of an input that may be T or float.
  ElementType type_of(const std::optional<ort::ConstTensor>& tensor) const;
  static InputShapes declared_shapes(const ort::KernelInfo& info, const OperatorDefinition& definition);

 private:
  void check_types(const ort::KernelInfo& info, const OperatorDefinition& definition) const;

  const OrtApi* api_;
  OrtAllocator* allocator_;
  ElementType type_;
  std::string label_;
};

// "onnx_moe.<operator> node '<name>'", as errors begin.
std::string node_label(const ort::KernelInfo& info, const OperatorDefinition& definition);

}  // namespace onnx_moe
