// Where a node's calls run: on the CPU kernels or on the accelerator, as the session's entry onnx_moe.device asks
// (auto, metal or cpu), the node allows and the size of a call makes worth while.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "core/accelerator.h"
#include "operators/operator_kernel.h"
#include "operators/session_log.h"

namespace onnx_moe {

class Placement {
 public:
  Placement() = default;
  // `obstacle(accelerator)`: why the accelerator cannot compute this node, or empty; not asked where the entry is cpu.
  // Throws an Error when the entry is unknown, or asks for a device that is not there, fails its self-test or does not
  // take the weights. The session's log says, with the reason, when the CPU computes what the entry leaves to the
  // device.
  template <typename Obstacle>
  Placement(const ort::KernelInfo& info, const OperatorDefinition& definition, Obstacle&& obstacle)
      : Placement(info, definition) {
    if (accelerator_) settle(info, definition, obstacle(*accelerator_));
  }

  // The accelerator when a call of so many multiply-adds is to run there; null: the CPU kernels.
  // `obstacle(accelerator)`: why this call cannot, as far as only a call can tell, or empty.
  template <typename Obstacle>
  Accelerator* accelerator(int64_t multiply_adds, Obstacle&& obstacle) const {
    if (!accelerator_ || multiply_adds < worth_from_) return nullptr;
    const std::string reason = obstacle(*accelerator_);
    if (reason.empty()) return accelerator_;
    log_->warn_once(label_ + " runs on the CPU: " + reason);
    return nullptr;
  }

  const Accelerator::Constants& constants() const { return *constants_; }

 private:
  // Of the session: the accelerator that it is to use, if there is one.
  Placement(const ort::KernelInfo& info, const OperatorDefinition& definition);
  // Of the node: keeps the accelerator, with the node's constants, unless something is in the way.
  void settle(const ort::KernelInfo& info, const OperatorDefinition& definition, const std::string& obstacle);
  void stay_on_cpu(const std::string& reason, const std::string& in_short);

  std::string label_;
  std::shared_ptr<SessionLog> log_;
  Accelerator* accelerator_ = nullptr;
  bool is_required_ = false;  // onnx_moe.device = metal
  int64_t worth_from_ = 0;
  std::unique_ptr<Accelerator::Constants> constants_;
};

// Interleaved weights are for CPU kernels alone: that they are, or empty.
std::string unsupported_layout(WeightLayout layout);

}  // namespace onnx_moe
