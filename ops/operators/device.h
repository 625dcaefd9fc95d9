// Where a node's calls run: on the CPU kernels or on the accelerator, as the session's entry onnx_moe.device asks
// (auto, metal or cpu), the node allows and the size of a call makes worth while.
#pragma once

#include <memory>
#include <string>

#include "core/accelerator.h"
#include "operators/operator_kernel.h"

namespace onnx_moe {

class Placement {
 public:
  Placement() = default;
  // `unsupported`: why the accelerator cannot compute this node, or null. Throws an Error when the entry is unknown, or
  // asks for a device that is not there or fails its self-test. Logs once a node, with the reason, when the CPU
  // computes what the entry leaves to the device.
  Placement(const ort::KernelInfo& info, const OperatorDefinition& definition, const char* unsupported);

  // The accelerator when a call of so many multiply-adds is to run there; null: the CPU kernels.
  Accelerator* accelerator(int64_t multiply_adds) const;
  const Accelerator::Constants& constants() const { return *constants_; }

 private:
  Accelerator* accelerator_ = nullptr;
  int64_t worth_from_ = 0;
  std::unique_ptr<Accelerator::Constants> constants_;
};

// Why a router cannot run on the accelerator, if there is one, or null. Open sizes are taken to fit.
const char* unsupported_router(const RouterAttributes& router, int64_t num_experts);

// Interleaved weights are for CPU kernels alone.
const char* unsupported_layout(WeightLayout layout);

}  // namespace onnx_moe
