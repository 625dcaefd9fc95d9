#include "operators/block_operator.h"

#include "kernels/registry.h"
#include "operators/read_attributes.h"
#include "operators/router_operator.h"

namespace onnx_moe {

namespace {

constexpr size_t kHiddenStates = 0;
constexpr size_t kGateWeight = 1;
constexpr size_t kGateBias = 2;
constexpr size_t kCorrectionBias = 3;
constexpr size_t kNextGateWeight = 12;
const ProjectionInputs kGateUp{4, "gate_up_"};
const ProjectionInputs kDown{8, "down_"};

struct Sizes {
  ProjectionSizes gate_up;
  ProjectionSizes down;
  int64_t routed_experts = kUnknown;
};

// Checks shapes against each other; open dimensions fit everything.
Sizes check_shapes(const InputShapes& shapes, const BlockFormat& format) {
  Sizes sizes{check_projection(shapes, kGateUp, format), check_projection(shapes, kDown, format)};
  if (const auto& hidden = shapes[kHiddenStates]) {
    require(!hidden->empty(), "input hidden_states is a scalar, but must be [..., H]");
    Dimensions expected = *hidden;
    expected.back() = sizes.gate_up.columns;
    expect_shape("hidden_states", *hidden, expected, "[..., H]");
  }
  if (const auto& next = shapes[kNextGateWeight]) {
    expect_shape("next_gate_weight", *next, {kUnknown, sizes.gate_up.columns}, "[F, H]");
  }
  if (const auto& gate = shapes[kGateWeight]) {
    expect_shape("gate_weight", *gate, {kUnknown, sizes.gate_up.columns}, "[R, H]");
    sizes.routed_experts = (*gate)[0];
  }
  if (const auto& bias = shapes[kGateBias]) expect_shape("gate_bias", *bias, {sizes.routed_experts}, "[R]");
  if (const auto& bias = shapes[kCorrectionBias]) expect_shape("correction_bias", *bias, {sizes.routed_experts}, "[R]");
  return sizes;
}

}  // namespace

BlockOperator::BlockOperator(const OrtApi* api, const ort::KernelInfo& info, const OperatorDefinition& definition,
                             int type)
    : BlockOperator(api, info, definition, type, Attributes(info, definition)) {}

BlockOperator::BlockOperator(const OrtApi* api, const ort::KernelInfo& info, const OperatorDefinition& definition,
                             int type, const Attributes& attributes)
    : OperatorKernel(api, info, definition, type),
      router_(read_router_attributes(attributes)),
      format_(read_format(attributes)),
      layout_(read_weight_layout(attributes)),
      activation_(read_activation(attributes)),
      precision_(read_precision(attributes)),
      trace_(info) {
  for (const ProjectionInputs& inputs : {kGateUp, kDown}) check_scale_type(info, inputs, format_);
  const Sizes sizes = check_shapes(declared_shapes(info, definition), format_);
  if (sizes.routed_experts != kUnknown) validate(router_, sizes.routed_experts);
  const int64_t rows = sizes.gate_up.rows == kUnknown ? 2 * kGroupRows : sizes.gate_up.rows;
  validate(activation_, rows);
  validate(layout_, rows, activation_);
  validate(layout_, sizes.down.rows == kUnknown ? kGroupRows : sizes.down.rows, Activation{});
  placement_ = Placement(info, definition, [&](const Accelerator& device) {
    if (trace_.records()) return std::string("its routing is recorded (onnx_moe.trace), and the device does not tell");
    const std::string reason = unsupported_layout(layout_);
    return reason.empty() ? device.unsupported(router_, sizes.routed_experts) : reason;
  });
  next_gate_ = NextGate(info, {kGateWeight, kGateBias, kCorrectionBias, kNextGateWeight}, router_);
  residency_ = ExpertResidency(info, {kGateUp, kDown}, router_.slots());
}

void BlockOperator::compute(ort::KernelContext& context) {
  const ort::ConstTensor hidden = context.required_input(kHiddenStates, "hidden_states");
  const ort::ConstTensor gate = context.required_input(kGateWeight, "gate_weight");
  const std::optional<ort::ConstTensor> gate_bias = context.input(kGateBias);
  const std::optional<ort::ConstTensor> correction_bias = context.input(kCorrectionBias);
  const ProjectionTensors gate_up(context, kGateUp);
  const ProjectionTensors down(context, kDown);
  InputShapes shapes;
  shapes[kHiddenStates] = hidden.dimensions();
  shapes[kGateWeight] = gate.dimensions();
  shapes[kGateBias] = dimensions_of(gate_bias);
  shapes[kCorrectionBias] = dimensions_of(correction_bias);
  shapes[kNextGateWeight] = dimensions_of(context.input(kNextGateWeight));
  gate_up.put_shapes(kGateUp, shapes);
  down.put_shapes(kDown, shapes);
  const Sizes sizes = check_shapes(shapes, format_);
  const MoeBlock block{router_,
                       activation_,
                       precision_,
                       gate_up.as_weights(format_, layout_, sizes.gate_up),
                       down.as_weights(format_, layout_, sizes.down),
                       &residency_};
  validate(block, sizes.routed_experts);

  Dimensions dimensions = hidden.dimensions();
  int64_t tokens = 1;
  for (size_t i = 0; i + 1 < dimensions.size(); ++i) tokens *= dimensions[i];
  dimensions.back() = sizes.down.rows;
  void* y = context.output(0, dimensions);
  const RouterInput routing{type(),
                            static_cast<ElementType>(gate.type()),
                            type_of(gate_bias),
                            tokens,
                            sizes.gate_up.columns,
                            sizes.routed_experts,
                            hidden.data(),
                            gate.data(),
                            gate_bias ? gate_bias->data() : nullptr,
                            correction_bias ? correction_bias->as<float>() : nullptr,
                            nullptr,
                            nullptr,
                            nullptr};
  const int64_t multiply_adds =
      tokens * router_.slots() * (sizes.gate_up.rows * sizes.gate_up.columns + sizes.down.rows * sizes.down.columns);
  // The mode of residency, and sizes that the graph leaves open, are known only now.
  Accelerator* const accelerator = placement_.accelerator(multiply_adds, [&](const Accelerator& device) {
    const std::string reason = residency_.unsupported();
    return reason.empty() ? device.unsupported(router_, sizes.routed_experts) : reason;
  });
  if (accelerator) return accelerator->moe_block(block, routing, y, placement_.constants());
  next_gate_.predict(context, routing);
  RoutingTraceEntry::Call call(trace_, hidden.dimensions());
  moe_block(current_kernel(), block, routing, trace_.records() ? &call : nullptr, y, context);
}

void BlockOperator::infer_shapes(const ort::ShapeInference& inference) {
  std::optional<ort::Shape> shape = inference.input(kHiddenStates);
  const std::optional<ort::Shape> down = inference.input(kDown.weights());
  if (!shape || !shape->has_rank || shape->dimensions.empty() || !down || down->rank() != 3) return;
  shape->dimensions.back() = down->dimensions[1];
  shape->symbols.back() = down->symbols[1];
  inference.set_output(0, *shape);
}

}  // namespace onnx_moe
