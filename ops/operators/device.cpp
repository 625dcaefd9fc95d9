#include "operators/device.h"

#include <algorithm>

namespace onnx_moe {

namespace {

std::vector<ConstantMemory> constant_inputs(const ort::KernelInfo& info, const OperatorDefinition& definition) {
  std::vector<ConstantMemory> constants;
  for (size_t i = 0; i < std::min(definition.inputs.size(), info.input_count()); ++i) {
    const std::optional<ort::ConstTensor> tensor = info.constant_input(i);
    if (!tensor) continue;
    int64_t bytes = ort::element_bytes(tensor->type());
    for (const int64_t size : tensor->dimensions()) bytes *= size;
    if (bytes > 0) constants.push_back({tensor->data(), bytes});
  }
  return constants;
}

// Every operator's first input holds activations.
ElementType activation_type(const ort::KernelInfo& info) {
  const std::optional<ort::Shape> activations = info.input_shape(0);
  require(activations.has_value(), "the node has no inputs");
  return static_cast<ElementType>(activations->type);
}

}  // namespace

Placement::Placement(const ort::KernelInfo& info, const OperatorDefinition& definition, const char* unsupported) {
  const std::string device = info.config_entry("onnx_moe.device").value_or("auto");
  require(device == "auto" || device == "metal" || device == "cpu", "session entry onnx_moe.device is '", device,
          "': use auto, metal or cpu");
  if (device == "cpu") return;
  const AcceleratorSearch& search = find_accelerator();
  require(search.accelerator || device == "auto", "session entry onnx_moe.device is 'metal', but ", search.reason,
          ": use auto or cpu");
  if (!search.accelerator) return;
  const std::string label = node_label(info, definition);
  if (unsupported) {
    info.logger().warn(label + " runs on the CPU: " + unsupported);
    return;
  }
  const std::string& distrust = search.accelerator->distrust(activation_type(info));
  require(distrust.empty() || device == "auto", "session entry onnx_moe.device is 'metal', but ", distrust,
          ": use auto or cpu, and report it");
  if (!distrust.empty()) {
    info.logger().warn(label + " runs on the CPU: " + distrust);
    return;
  }
  accelerator_ = search.accelerator;
  constants_ = accelerator_->adopt(constant_inputs(info, definition));
  if (device == "metal") return;
  worth_from_ = accelerator_->worth_from();
  info.logger().note(label + " runs on the CPU for calls below " + std::to_string(worth_from_) +
                     " multiply-adds: they are over before a command buffer would be");
}

Accelerator* Placement::accelerator(int64_t multiply_adds) const {
  return multiply_adds >= worth_from_ ? accelerator_ : nullptr;
}

const char* unsupported_router(const RouterAttributes& router, int64_t num_experts) {
  const Accelerator* const accelerator = find_accelerator().accelerator;
  return accelerator ? accelerator->unsupported(router, num_experts) : nullptr;
}

const char* unsupported_layout(WeightLayout layout) {
  return layout == WeightLayout::kInterleaved ? "weight_layout interleaved is for its kernels alone" : nullptr;
}

}  // namespace onnx_moe
