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

Placement::Placement(const ort::KernelInfo& info, const OperatorDefinition& definition) {
  const std::string device = info.config_entry("onnx_moe.device").value_or("auto");
  require(device == "auto" || device == "metal" || device == "cpu", "session entry onnx_moe.device is '", device,
          "': use auto, metal or cpu");
  if (device == "cpu") return;
  is_required_ = device == "metal";
  const AcceleratorSearch& search = find_accelerator();
  require(search.accelerator || !is_required_, "session entry onnx_moe.device is 'metal', but ", search.reason,
          ": use auto or cpu");
  if (!search.has_backend) return;
  label_ = node_label(info, definition);
  log_ = SessionLog::of(info.logger());
  accelerator_ = search.accelerator;
  if (!accelerator_) log_->warn_once("onnx_moe runs on the CPU: " + search.reason);
}

void Placement::settle(const ort::KernelInfo& info, const OperatorDefinition& definition, const std::string& obstacle) {
  if (!obstacle.empty()) return stay_on_cpu(obstacle, obstacle);
  const std::string& distrust = accelerator_->distrust(activation_type(info));
  require(distrust.empty() || !is_required_, "session entry onnx_moe.device is 'metal', but ", distrust,
          ": use auto or cpu, and report it");
  if (!distrust.empty()) return stay_on_cpu(distrust, "the device fails its self-test");
  try {
    constants_ = accelerator_->adopt(constant_inputs(info, definition));
  } catch (const Error& error) {
    if (is_required_) throw;
    return stay_on_cpu(error.what(), error.what());
  }
  if (const std::string remark = constants_->remark(); !remark.empty()) log_->warn_once(label_ + ": " + remark);
  if (is_required_) return;
  worth_from_ = accelerator_->worth_from();
  info.logger().note(label_ + " runs on the CPU for calls below " + std::to_string(worth_from_) +
                     " multiply-adds: they are over before a command buffer would be");
}

void Placement::stay_on_cpu(const std::string& reason, const std::string& in_short) {
  accelerator_ = nullptr;
  log_->warn(label_ + " runs on the CPU: ", reason, in_short);
}

std::string unsupported_layout(WeightLayout layout) {
  return layout == WeightLayout::kInterleaved ? "weight_layout interleaved is for its kernels alone" : "";
}

}  // namespace onnx_moe
