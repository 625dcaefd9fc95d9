#include "operators/projection.h"

namespace onnx_moe {

namespace {

Format parse_format(const std::string& name) {
  for (const Format format : {Format::kMxfp4, Format::kNvfp4, Format::kFp4}) {
    if (name == format_name(format)) return format;
  }
  fail("format '", name, "' is unknown");
}

ort::ConstTensor required(const ort::KernelContext& context, size_t index, const InputName& name) {
  const std::optional<ort::ConstTensor> tensor = context.input(index);
  require(tensor.has_value(), "input ", index, " (", name.prefix, name.name, ") is missing");
  return *tensor;
}

void check_global_scale(const InputName& name, const Dimensions& scale, ProjectionSizes& sizes) {
  if (scale.size() != 2) return expect_shape(name, scale, {sizes.num_experts}, "[E] or [E, 2]");
  expect_shape(name, scale, {sizes.num_experts, 2}, "[E] or [E, 2]");
  sizes.global_scales = 2;
}

}  // namespace

BlockFormat read_format(const Attributes& attributes) {
  return make_block_format(parse_format(attributes.text("format")), attributes.integer("block_size"));
}

WeightLayout read_weight_layout(const Attributes& attributes) {
  return attributes.text("weight_layout") == "interleaved" ? WeightLayout::kInterleaved : WeightLayout::kRows;
}

Precision read_precision(const Attributes& attributes) { return precision_of(attributes.integer("accuracy_level")); }

ProjectionSizes check_projection(const InputShapes& shapes, const ProjectionInputs& inputs, const BlockFormat& format) {
  ProjectionSizes sizes;
  if (const auto& weights = shapes[inputs.weights()]) {
    expect_shape(inputs.name("weights"), *weights, {kUnknown, kUnknown, kUnknown}, "[E, N, K/2]");
    sizes.num_experts = (*weights)[0];
    sizes.rows = (*weights)[1];
    sizes.columns = (*weights)[2] == kUnknown ? kUnknown : 2 * (*weights)[2];
  }
  if (sizes.columns != kUnknown) {
    require(sizes.columns % format.block_size == 0, "input ", inputs.prefix, "weights has K = ", sizes.columns,
            " columns, which is no multiple of ", format_name(format.format), "'s block of ", format.block_size,
            ": pad K with zeros");
  }
  if (const auto& scales = shapes[inputs.scales()]) {
    const int64_t blocks = sizes.columns == kUnknown ? kUnknown : format.blocks(sizes.columns);
    expect_shape(inputs.name("scales"), *scales, {sizes.num_experts, sizes.rows, blocks}, "[E, N, K/block]");
  }
  if (const auto& scale = shapes[inputs.global_scale()]) check_global_scale(inputs.name("global_scale"), *scale, sizes);
  if (const auto& bias = shapes[inputs.bias()]) {
    expect_shape(inputs.name("bias"), *bias, {sizes.num_experts, sizes.rows}, "[E, N]");
  }
  return sizes;
}

void check_scale_type(const ort::KernelInfo& info, const ProjectionInputs& inputs, const BlockFormat& format) {
  const std::optional<ort::Shape> scales = info.input_shape(inputs.scales());
  if (!scales) return;
  const int expected = format.format == Format::kFp4 ? ort::kFloat16 : ort::kUint8;
  require(scales->type == expected, "input ", inputs.prefix, "scales is ", type_name(scales->type), ", but format ",
          format_name(format.format), " takes ", type_name(expected));
}

std::optional<Dimensions> dimensions_of(const std::optional<ort::ConstTensor>& tensor) {
  return tensor ? std::optional<Dimensions>(tensor->dimensions()) : std::nullopt;
}

ProjectionTensors::ProjectionTensors(const ort::KernelContext& context, const ProjectionInputs& inputs)
    : weights(required(context, inputs.weights(), inputs.name("weights"))),
      scales(required(context, inputs.scales(), inputs.name("scales"))),
      global_scale(context.input(inputs.global_scale())),
      bias(context.input(inputs.bias())) {}

void ProjectionTensors::put_shapes(const ProjectionInputs& inputs, InputShapes& shapes) const {
  shapes[inputs.weights()] = weights.dimensions();
  shapes[inputs.scales()] = scales.dimensions();
  shapes[inputs.global_scale()] = dimensions_of(global_scale);
  shapes[inputs.bias()] = dimensions_of(bias);
}

ExpertWeights ProjectionTensors::as_weights(const BlockFormat& format, WeightLayout layout,
                                            const ProjectionSizes& sizes) const {
  return {format,
          layout,
          sizes.num_experts,
          sizes.rows,
          sizes.columns,
          weights.as<uint8_t>(),
          scales.data(),
          global_scale ? global_scale->as<float>() : nullptr,
          sizes.global_scales,
          bias ? static_cast<ElementType>(bias->type()) : ElementType::kFloat,
          bias ? bias->data() : nullptr};
}

}  // namespace onnx_moe
