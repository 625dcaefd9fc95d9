#include "operators/router_operator.h"

#include "kernels/registry.h"
#include "operators/projection.h"
#include "operators/read_attributes.h"

namespace onnx_moe {

namespace {

enum Input : size_t { kHiddenStates, kGateWeight, kGateBias, kCorrectionBias, kNextGateWeight };
enum Output : size_t { kExpertIds, kExpertWeights, kRouterLogits };

struct Sizes {
  int64_t num_experts = kUnknown;
  int64_t hidden_size = kUnknown;
};

// Checks shapes against each other; open dimensions fit everything.
Sizes check_shapes(const InputShapes& shapes, bool has_gate) {
  Sizes sizes;
  if (const auto& hidden = shapes[kHiddenStates]) {
    require(!hidden->empty(), "input hidden_states is a scalar, but must be [..., ", has_gate ? "H" : "E", "]");
    (has_gate ? sizes.hidden_size : sizes.num_experts) = hidden->back();
  }
  if (const auto& gate = shapes[kGateWeight]) {
    expect_shape("gate_weight", *gate, {kUnknown, sizes.hidden_size}, "[E, H]");
    sizes = {(*gate)[0], (*gate)[1]};
  }
  if (const auto& next = shapes[kNextGateWeight]) {
    require(has_gate, "input next_gate_weight takes hidden states, but without gate_weight the router gets logits: ",
            "leave it out");
    expect_shape("next_gate_weight", *next, {kUnknown, sizes.hidden_size}, "[F, H]");
  }
  if (const auto& bias = shapes[kGateBias]) expect_shape("gate_bias", *bias, {sizes.num_experts}, "[E]");
  if (const auto& bias = shapes[kCorrectionBias]) expect_shape("correction_bias", *bias, {sizes.num_experts}, "[E]");
  return sizes;
}

}  // namespace

RouterOperator::RouterOperator(const OrtApi* api, const ort::KernelInfo& info, const OperatorDefinition& definition,
                               int type)
    : OperatorKernel(api, info, definition, type),
      attributes_(read_router_attributes(Attributes(info, definition))),
      trace_(info) {
  const Sizes sizes = check_shapes(declared_shapes(info, definition), info.input_shape(kGateWeight).has_value());
  if (sizes.num_experts != kUnknown) validate(attributes_, sizes.num_experts);
  next_gate_ = NextGate(info, {kGateWeight, kGateBias, kCorrectionBias, kNextGateWeight}, attributes_);
  const auto obstacle = [&](const Accelerator& device) { return device.unsupported(attributes_, sizes.num_experts); };
  placement_ = Placement(info, definition, obstacle);
}

void RouterOperator::compute(ort::KernelContext& context) {
  const ort::ConstTensor hidden = context.required_input(kHiddenStates, "hidden_states");
  const std::optional<ort::ConstTensor> gate = context.input(kGateWeight);
  const std::optional<ort::ConstTensor> gate_bias = context.input(kGateBias);
  const std::optional<ort::ConstTensor> correction_bias = context.input(kCorrectionBias);
  const Sizes sizes = check_shapes({hidden.dimensions(), dimensions_of(gate), dimensions_of(gate_bias),
                                    dimensions_of(correction_bias), dimensions_of(context.input(kNextGateWeight))},
                                   gate.has_value());
  validate(attributes_, sizes.num_experts);

  Dimensions dimensions = hidden.dimensions();
  int64_t tokens = 1;
  for (size_t i = 0; i + 1 < dimensions.size(); ++i) tokens *= dimensions[i];
  dimensions.back() = attributes_.slots();
  auto* ids = static_cast<int32_t*>(context.output(kExpertIds, dimensions));
  auto* weights = static_cast<float*>(context.output(kExpertWeights, dimensions));
  dimensions.back() = sizes.num_experts;
  auto* logits = static_cast<float*>(context.output(kRouterLogits, dimensions));
  if (tokens == 0) return;  // nothing to write, and memory of size zero may be null
  require(ids && weights, "outputs expert_ids and expert_weights must both be there");

  const RouterInput input{type(),
                          type_of(gate),
                          type_of(gate_bias),
                          tokens,
                          sizes.hidden_size,
                          sizes.num_experts,
                          hidden.data(),
                          gate ? gate->data() : nullptr,
                          gate_bias ? gate_bias->data() : nullptr,
                          correction_bias ? correction_bias->as<float>() : nullptr,
                          ids,
                          weights,
                          logits};
  const int64_t multiply_adds = gate ? tokens * sizes.num_experts * sizes.hidden_size : 0;
  const auto obstacle = [&](const Accelerator& device) { return device.unsupported(attributes_, sizes.num_experts); };
  if (Accelerator* const accelerator = placement_.accelerator(multiply_adds, obstacle)) {
    accelerator->route(attributes_, input, placement_.constants());
  } else {
    route(current_kernel(), attributes_, input, context);
  }
  if (gate) next_gate_.predict(context, input);
  if (trace_.records()) {
    RoutingTraceEntry::Call(trace_, hidden.dimensions())
        .routed({ids, weights, tokens, attributes_.slots(), attributes_.top_k, sizes.num_experts});
  }
}

void RouterOperator::infer_shapes(const ort::ShapeInference& inference) {
  std::optional<ort::Shape> shape = inference.input(kHiddenStates);
  const std::optional<int64_t> top_k = inference.int_attribute("top_k");
  if (!shape || !shape->has_rank || shape->dimensions.empty() || !top_k) return;
  const int64_t shared = inference.int_attribute("num_shared_experts").value_or(0);
  shape->dimensions.back() = *top_k + shared;
  shape->symbols.back().clear();
  shape->type = ort::kInt32;
  inference.set_output(kExpertIds, *shape);
  shape->type = ort::kFloat;
  inference.set_output(kExpertWeights, *shape);
  // Not router_logits: nothing tells here whether the node has that output, and ONNX Runtime writes past the end of
  // its vector (1.24 to 1.27 abort) when the shape of one is set that it has not.
}

}  // namespace onnx_moe
