#include "operators/operator_kernel.h"

#include <algorithm>
#include <cmath>

namespace onnx_moe {

namespace {

template <typename Items, typename Name>
std::string join(const Items& items, Name&& name, const char* separator = ", ") {
  std::string joined;
  for (const auto& item : items) joined += (joined.empty() ? "" : separator) + name(item);
  return joined;
}

// read(), whose error says neither which attribute it was nor what it should be.
template <typename Read>
auto read_as(const char* type, const AttributeDefinition& attribute, Read&& read) {
  try {
    return read();
  } catch (const Error& error) {
    fail("attribute ", attribute.name, " must be ", type, ": ", error.what());
  }
}

void check_range(const AttributeDefinition& attribute, double value) {
  require(value >= attribute.minimum && value <= attribute.maximum && std::isfinite(value), "attribute ",
          attribute.name, " is ", value, ": it must lie from ", attribute.minimum, " to ", attribute.maximum);
}

}  // namespace

std::string to_string(const Dimensions& dimensions) {
  return "[" + join(dimensions, [](int64_t size) { return size == kUnknown ? "?" : std::to_string(size); }) + "]";
}

std::string type_name(int type) {
  switch (type) {
    case ort::kFloat:
      return "float";
    case ort::kFloat16:
      return "float16";
    case ort::kBFloat16:
      return "bfloat16";
    case ort::kUint8:
      return "uint8";
    case ort::kInt32:
      return "int32";
    default:
      return "element type " + std::to_string(type);
  }
}

void expect_shape(const InputName& input, const Dimensions& actual, const Dimensions& expected, const char* meaning) {
  const bool matches =
      actual.size() == expected.size() && std::equal(actual.begin(), actual.end(), expected.begin(), fits);
  if (matches) return;
  fail("input ", input.prefix, input.name, " has shape ", to_string(actual), ", but must be ", meaning, " = ",
       to_string(expected));
}

Attributes::Attributes(const ort::KernelInfo& info, const OperatorDefinition& definition) {
  for (const AttributeDefinition& attribute : definition.attributes) read(info, attribute);
}

void Attributes::read(const ort::KernelInfo& info, const AttributeDefinition& attribute) {
  const auto value_or_default = [&](auto value, auto fallback) {
    require(value.has_value() || !attribute.required, "attribute ", attribute.name, " is missing: it has no default");
    return value.value_or(fallback);
  };
  if (attribute.type == AttributeType::kInt) {
    const auto given = read_as("an int", attribute, [&] { return info.int_attribute(attribute.name); });
    const int64_t value = value_or_default(given, static_cast<int64_t>(attribute.default_number));
    check_range(attribute, static_cast<double>(value));
    integers_[attribute.name] = value;
  } else if (attribute.type == AttributeType::kFloat) {
    const auto given = read_as("a float", attribute, [&] { return info.float_attribute(attribute.name); });
    const float value = value_or_default(given, static_cast<float>(attribute.default_number));
    check_range(attribute, static_cast<double>(value));
    numbers_[attribute.name] = value;
  } else {
    const auto given = read_as("a string", attribute, [&] { return info.string_attribute(attribute.name); });
    const std::string value = value_or_default(given, attribute.default_text);
    const bool known = std::find(attribute.choices.begin(), attribute.choices.end(), value) != attribute.choices.end();
    require(known, "attribute ", attribute.name, " is '", value, "': use one of ",
            join(attribute.choices, [](const std::string& choice) { return choice; }));
    texts_[attribute.name] = value;
  }
}

std::string node_label(const ort::KernelInfo& info, const OperatorDefinition& definition) {
  return std::string(operator_domain()) + "." + definition.name + " node '" + info.node_name() + "'";
}

OperatorKernel::OperatorKernel(const OrtApi* api, const ort::KernelInfo& info, const OperatorDefinition& definition,
                               int type)
    : api_(api),
      allocator_(info.allocator()),
      type_(static_cast<ElementType>(type)),
      label_(node_label(info, definition)) {
  check_types(info, definition);
}

OrtStatus* OperatorKernel::run(OrtKernelContext* context) {
  return ort::guarded(api_, label_, [&] {
    ort::KernelContext wrapped(api_, context, allocator_);
    compute(wrapped);
  });
}

ElementType OperatorKernel::type_of(const std::optional<ort::ConstTensor>& tensor) const {
  return tensor ? static_cast<ElementType>(tensor->type()) : ElementType::kFloat;
}

InputShapes OperatorKernel::declared_shapes(const ort::KernelInfo& info, const OperatorDefinition& definition) {
  InputShapes shapes;
  require(definition.inputs.size() <= shapes.size(), definition.name, " has more inputs than kMostInputs");
  for (size_t i = 0; i < definition.inputs.size(); ++i) {
    const std::optional<ort::Shape> shape = info.input_shape(i);
    if (shape && shape->has_rank) shapes[i] = Dimensions(shape->dimensions);
  }
  return shapes;
}

void OperatorKernel::check_types(const ort::KernelInfo& info, const OperatorDefinition& definition) const {
  for (size_t i = 0; i < definition.inputs.size(); ++i) {
    const TensorDefinition& input = definition.inputs[i];
    const std::optional<ort::Shape> actual = info.input_shape(i);
    if (!actual) {
      require(input.optional || i < info.input_count(), "input ", input.name, " is missing: it is not optional");
      continue;
    }
    std::vector<int> legal = input.types;
    if (input.type == "T_or_float") {
      legal = {ort::kFloat};
      if (type_ != ElementType::kFloat) legal.push_back(static_cast<int>(type_));
    }
    if (input.type == "T") legal = {static_cast<int>(type_)};
    require(std::find(legal.begin(), legal.end(), actual->type) != legal.end(), "input ", input.name, " is ",
            type_name(actual->type), ", but must be ", join(legal, type_name, " or "), ": cast it");
  }
}

}  // namespace onnx_moe
