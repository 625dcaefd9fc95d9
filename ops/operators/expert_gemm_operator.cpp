#include "operators/expert_gemm_operator.h"

#include "kernels/registry.h"
#include "operators/read_attributes.h"

namespace onnx_moe {

namespace {

enum Input : size_t { kX, kExpertIds, kWeights, kScales, kGlobalScale, kBias, kExpertWeights, kInputs };

const ProjectionInputs kProjection{kWeights, ""};

struct Sizes : ProjectionSizes {
  int64_t slots = kUnknown;
  bool x_per_slot = false;
};

void check_x(const Dimensions& x, const Dimensions& ids, Sizes& sizes) {
  sizes.x_per_slot = x.size() == ids.size() + 1;
  Dimensions expected = ids;
  if (!sizes.x_per_slot) expected.pop_back();
  expected.push_back(sizes.columns);
  expect_shape("x", x, expected, sizes.x_per_slot ? "[..., k, K]" : "[..., K]");
}

// Checks shapes against each other; open dimensions fit everything.
Sizes check_shapes(const InputShapes& shapes, const BlockFormat& format) {
  Sizes sizes{check_projection(shapes, kProjection, format)};
  if (const auto& ids = shapes[kExpertIds]) {
    if (ids->empty() || ids->back() == 0) {
      fail("input expert_ids has shape ", to_string(*ids), ", but must be [..., k] with k ≥ 1");
    }
    sizes.slots = ids->back();
    if (const auto& x = shapes[kX]) check_x(*x, *ids, sizes);
    if (const auto& weights = shapes[kExpertWeights]) expect_shape("expert_weights", *weights, *ids, "[..., k]");
  }
  return sizes;
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
      format_(read_format(attributes)),
      layout_(read_weight_layout(attributes)),
      activation_(read_activation(attributes)),
      precision_(read_precision(attributes)) {
  check_scale_type(info, kProjection, format_);
  const Sizes sizes = check_shapes(declared_shapes(info, definition), format_);
  const int64_t rows = sizes.rows == kUnknown ? 2 * kGroupRows : sizes.rows;
  validate(activation_, rows);
  validate(layout_, rows, activation_);
  require(sizes.global_scales == 1 || activation_.gated,
          "input global_scale is [E, 2] (gate, up), but gated is 0: use one scale an expert");
  placement_ = Placement(info, definition, [&](const Accelerator&) { return unsupported_layout(layout_); });
  residency_ = ExpertResidency(info, {kProjection}, sizes.slots);
}

void ExpertGemmOperator::compute(ort::KernelContext& context) {
  const ort::ConstTensor x = context.required_input(kX, "x");
  const ort::ConstTensor ids = context.required_input(kExpertIds, "expert_ids");
  const ProjectionTensors projection(context, kProjection);
  const std::optional<ort::ConstTensor> expert_weights = context.input(kExpertWeights);
  InputShapes shapes;
  shapes[kX] = x.dimensions();
  shapes[kExpertIds] = ids.dimensions();
  shapes[kExpertWeights] = dimensions_of(expert_weights);
  projection.put_shapes(kProjection, shapes);
  const Sizes sizes = check_shapes(shapes, format_);
  const ExpertWeights weights = projection.as_weights(format_, layout_, sizes);
  validate(weights, activation_);

  Dimensions dimensions = ids.dimensions();
  if (expert_weights) dimensions.pop_back();
  dimensions.push_back(activation_.output_columns(sizes.rows));
  void* y = context.output(0, dimensions);
  const ExpertGemmInput input{type(),
                              precision_,
                              leading_rows(ids.dimensions()),
                              sizes.slots,
                              sizes.x_per_slot,
                              x.data(),
                              ids.as<int32_t>(),
                              expert_weights ? expert_weights->as<float>() : nullptr,
                              y};
  const int64_t multiply_adds = input.tokens * sizes.slots * sizes.rows * sizes.columns;
  Accelerator* const accelerator =
      placement_.accelerator(multiply_adds, [&](const Accelerator&) { return residency_.unsupported(); });
  if (accelerator) return accelerator->expert_gemm(activation_, weights, input, placement_.constants());
  expert_gemm(current_kernel(), activation_, weights, input, &residency_, context);
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
