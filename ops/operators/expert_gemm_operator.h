// MoEExpertGemmFP4 for ONNX Runtime.
#pragma once

#include "operators/device.h"
#include "operators/projection.h"
#include "operators/residency.h"

namespace onnx_moe {

class ExpertGemmOperator final : public OperatorKernel {
 public:
  static constexpr const char* kName = "MoEExpertGemmFP4";

  ExpertGemmOperator(const OrtApi* api, const ort::KernelInfo& info, const OperatorDefinition& definition, int type);
  static void infer_shapes(const ort::ShapeInference& inference);

 private:
  ExpertGemmOperator(const OrtApi* api, const ort::KernelInfo& info, const OperatorDefinition& definition, int type,
                     const Attributes& attributes);
  void compute(ort::KernelContext& context) override;

  BlockFormat format_;
  WeightLayout layout_;
  Activation activation_;
  Precision precision_;
  Placement placement_;
  ExpertResidency residency_;
};

}  // namespace onnx_moe
