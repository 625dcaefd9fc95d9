#include "operators/expert_gemm_operator.h"

#include "core/expert_gemm.h"
#include "kernels/registry.h"

namespace onnx_moe {

namespace {

enum Input : size_t { kX, kExpertIds, kWeights, kScales, kGlobalScale, kBias, kExpertWeights };

Format parse_format(const std::string& name) {
  for (const Format format : {Format::kMxfp4, Format::kNvfp4, Format::kFp4}) {
    if (name == format_name(format)) return format;
  }
  fail("format '", name, "' is unknown");
}

Activation read_activation(const Attributes& attributes) {
  return {parse_function(attributes.text("activation")),
          attributes.integer("gated") != 0,
          attributes.text("gate_layout") == "interleaved",
          attributes.number("alpha"),
          attributes.number("beta"),
          attributes.number("limit")};
}

struct Sizes {
  int64_t num_experts = kUnknown;
  int64_t rows = kUnknown;
  int64_t columns = kUnknown;
  int64_t slots = kUnknown;
  int64_t global_scales = 1;
  bool x_per_slot = false;
};

void check_x(const Dimensions& x, const Dimensions& ids, Sizes& sizes) {
  sizes.x_per_slot = x.size() == ids.size() + 1;
  Dimensions expected = ids;
  if (!sizes.x_per_slot) expected.pop_back();
  expected.push_back(sizes.columns);
  expect_shape("x", x, expected, sizes.x_per_slot ? "[..., k, K]" : "[..., K]");
}

void check_global_scale(const Dimensions& scale, Sizes& sizes) {
  if (scale.size() != 2) return expect_shape("global_scale", scale, {sizes.num_experts}, "[E] or [E, 2]");
  expect_shape("global_scale", scale, {sizes.num_experts, 2}, "[E] or [E, 2]");
  sizes.global_scales = 2;
}

// Checks shapes against each other; open dimensions fit everything.
Sizes check_shapes(const InputShapes& shapes, const BlockFormat& format) {
  Sizes sizes;
  if (const auto& weights = shapes[kWeights]) {
    expect_shape("weights", *weights, {kUnknown, kUnknown, kUnknown}, "[E, N, K/2]");
    sizes.num_experts = weights->at(0);
    sizes.rows = weights->at(1);
    sizes.columns = weights->at(2) == kUnknown ? kUnknown : 2 * weights->at(2);
  }
  if (sizes.columns != kUnknown) {
    require(sizes.columns % format.block_size == 0, "input weights has K = ", sizes.columns,
            " columns, which is no multiple of ", format_name(format.format), "'s block of ", format.block_size,
            ": pad K with zeros");
  }
  if (const auto& scales = shapes[kScales]) {
    const int64_t blocks = sizes.columns == kUnknown ? kUnknown : format.blocks(sizes.columns);
    expect_shape("scales", *scales, {sizes.num_experts, sizes.rows, blocks}, "[E, N, K/block]");
  }
  if (const auto& ids = shapes[kExpertIds]) {
    require(!ids->empty() && ids->back() != 0, "input expert_ids has shape ", to_string(*ids),
            ", but must be [..., k] with k ≥ 1");
    sizes.slots = ids->back();
    if (const auto& x = shapes[kX]) check_x(*x, *ids, sizes);
    if (const auto& weights = shapes[kExpertWeights]) expect_shape("expert_weights", *weights, *ids, "[..., k]");
  }
  if (const auto& scale = shapes[kGlobalScale]) check_global_scale(*scale, sizes);
  if (const auto& bias = shapes[kBias]) expect_shape("bias", *bias, {sizes.num_experts, sizes.rows}, "[E, N]");
  return sizes;
}

void check_scale_type(int type, const BlockFormat& format) {
  const int expected = format.format == Format::kFp4 ? ort::kFloat16 : ort::kUint8;
  require(type == expected, "input scales is ", type_name(type), ", but format ", format_name(format.format), " takes ",
          type_name(expected));
}

int64_t leading_rows(const Dimensions& ids) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < ids.size(); ++i) rows *= ids[i];
  return rows;
}

}  // namespace

ExpertGemmOperator::ExpertGemmOperator(const OrtApi* api, const ort::KernelInfo& info,
                                       const OperatorDefinition& definition, int type)
    : ExpertGemmOperator(api, info, definition, type, Attributes(info, definition)) {}

ExpertGemmOperator::ExpertGemmOperator(const OrtApi* api, const ort::KernelInfo& info,
                                       const OperatorDefinition& definition, int type, const Attributes& attributes)
    : OperatorKernel(api, info, definition, type),
      format_(make_block_format(parse_format(attributes.text("format")), attributes.integer("block_size"))),
      activation_(read_activation(attributes)),
      precision_(precision_of(attributes.integer("accuracy_level"))) {
  if (const auto scales = info.input_shape(kScales)) check_scale_type(scales->type, format_);
  const Sizes sizes = check_shapes(declared_shapes(info, definition), format_);
  const int64_t rows = sizes.rows == kUnknown ? 2 : sizes.rows;
  validate(activation_, rows);
  require(sizes.global_scales == 1 || activation_.gated,
          "input global_scale is [E, 2] (gate, up), but gated is 0: use one scale an expert");
}

void ExpertGemmOperator::compute(ort::KernelContext& context) {
  const ort::ConstTensor x = context.required_input(kX, "x");
  const ort::ConstTensor ids = context.required_input(kExpertIds, "expert_ids");
  const ort::ConstTensor weights = context.required_input(kWeights, "weights");
  const ort::ConstTensor scales = context.required_input(kScales, "scales");
  const std::optional<ort::ConstTensor> global_scale = context.input(kGlobalScale);
  const std::optional<ort::ConstTensor> bias = context.input(kBias);
  const std::optional<ort::ConstTensor> expert_weights = context.input(kExpertWeights);
  const auto optional = [](const std::optional<ort::ConstTensor>& tensor) {
    return tensor ? std::optional<Dimensions>(tensor->dimensions()) : std::nullopt;
  };
  const Sizes sizes = check_shapes({x.dimensions(), ids.dimensions(), weights.dimensions(), scales.dimensions(),
                                    optional(global_scale), optional(bias), optional(expert_weights)},
                                   format_);
  const ExpertWeights experts{format_,
                              sizes.num_experts,
                              sizes.rows,
                              sizes.columns,
                              weights.as<uint8_t>(),
                              scales.data(),
                              global_scale ? global_scale->as<float>() : nullptr,
                              sizes.global_scales,
                              type_of(bias),
                              bias ? bias->data() : nullptr};
  validate(experts, activation_);

  Dimensions dimensions = ids.dimensions();
  if (expert_weights) dimensions.pop_back();
  dimensions.push_back(activation_.output_columns(sizes.rows));
  void* y = context.output(0, dimensions);
  expert_gemm(current_kernel(), activation_, experts,
              {type(), precision_, leading_rows(ids.dimensions()), sizes.slots, sizes.x_per_slot, x.data(), ids.as<int32_t>(),
               expert_weights ? expert_weights->as<float>() : nullptr, y},
              context);
}

void ExpertGemmOperator::infer_shapes(const ort::ShapeInference& inference) {
  const std::optional<ort::Shape> x = inference.input(kX);
  std::optional<ort::Shape> shape = inference.input(kExpertIds);
  const std::optional<ort::Shape> weights = inference.input(kWeights);
  if (!x || !shape || !shape->has_rank || shape->dimensions.empty() || !weights || weights->rank() != 3) return;
  if (inference.input(kExpertWeights)) {
    shape->dimensions.pop_back();
    shape->symbols.pop_back();
  }
  const bool gated = inference.int_attribute("gated").value_or(0) != 0;
  const int64_t rows = weights->dimensions[1];
  shape->dimensions.push_back(rows == kUnknown || !gated ? rows : rows / 2);
  shape->symbols.push_back(gated ? "" : weights->symbols[1]);
  shape->type = x->type;
  inference.set_output(0, *shape);
}

}  // namespace onnx_moe
