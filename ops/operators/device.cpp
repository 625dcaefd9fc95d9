#include "operators/device.h"

#ifdef ONNX_MOE_METAL
#include "runtime/backend.h"
#endif

namespace onnx_moe {

Device read_device(const ort::KernelInfo& info) {
  const std::string device = info.config_entry("onnx_moe.device").value_or("auto");
  require(device == "auto" || device == "metal" || device == "cpu", "session entry onnx_moe.device is '", device,
          "': use auto, metal or cpu");
  if (device != "metal") return Device::kCpu;  // auto too, until a Mac has measured where Metal pays
#ifdef ONNX_MOE_METAL
  require(metal::Backend::get() != nullptr,
          "session entry onnx_moe.device is 'metal', but no Metal device answers: use auto or cpu");
  return Device::kMetal;
#else
  fail("session entry onnx_moe.device is 'metal', but this library was built without Metal: use auto or cpu");
#endif
}

void expect_cpu(const ort::KernelInfo& info, const std::string& label) {
  if (read_device(info) == Device::kCpu) return;
  info.warn(label + " runs on the CPU: this operator has no Metal form yet");
}

}  // namespace onnx_moe
