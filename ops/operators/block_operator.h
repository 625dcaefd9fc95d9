// MoEBlockFP4 for ONNX Runtime.
#pragma once

#include "core/moe_block.h"
#include "operators/device.h"
#include "operators/next_gate.h"
#include "operators/projection.h"
#include "operators/residency.h"
#include "operators/routing_trace.h"

namespace onnx_moe {

class BlockOperator final : public OperatorKernel {
 public:
  static constexpr const char* kName = "MoEBlockFP4";

  BlockOperator(const OrtApi* api, const ort::KernelInfo& info, const OperatorDefinition& definition, int type);
  static void infer_shapes(const ort::ShapeInference& inference);

 private:
  BlockOperator(const OrtApi* api, const ort::KernelInfo& info, const OperatorDefinition& definition, int type,
                const Attributes& attributes);
  void compute(ort::KernelContext& context) override;

  RouterAttributes router_;
  BlockFormat format_;
  WeightLayout layout_;
  Activation activation_;
  Precision precision_;
  Placement placement_;
  NextGate next_gate_;
  ExpertResidency residency_;
  RoutingTraceEntry trace_;
};

}  // namespace onnx_moe
