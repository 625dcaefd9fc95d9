// MoERouter for ONNX Runtime.
#pragma once

#include "core/router.h"
#include "operators/device.h"
#include "operators/next_gate.h"
#include "operators/routing_trace.h"

namespace onnx_moe {

class RouterOperator final : public OperatorKernel {
 public:
  static constexpr const char* kName = "MoERouter";

  RouterOperator(const OrtApi* api, const ort::KernelInfo& info, const OperatorDefinition& definition, int type);
  static void infer_shapes(const ort::ShapeInference& inference);

 private:
  void compute(ort::KernelContext& context) override;

  RouterAttributes attributes_;
  Placement placement_;
  NextGate next_gate_;
  RoutingTraceEntry trace_;
};

}  // namespace onnx_moe
