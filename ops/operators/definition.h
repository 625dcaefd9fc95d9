// The operators' definitions, as definitions.json has them.
#pragma once

#include <string>
#include <vector>

namespace onnx_moe {

enum class AttributeType { kInt, kFloat, kString };

struct TensorDefinition {
  std::string name;
  std::string type;        // "T" stands for the element type of the kernel
  std::vector<int> types;  // element types that are legal
  bool optional;
};

struct AttributeDefinition {
  std::string name;
  AttributeType type;
  bool required;
  std::string default_text;
  double default_number;
  std::vector<std::string> choices;
  double minimum;
  double maximum;
};

struct OperatorDefinition {
  std::string name;
  std::vector<TensorDefinition> inputs;
  std::vector<TensorDefinition> outputs;
  std::vector<AttributeDefinition> attributes;
};

const char* operator_domain();
int operator_domain_version();
const OperatorDefinition& operator_definition(const std::string& name);

}  // namespace onnx_moe
