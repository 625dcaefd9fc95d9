// What the operators have in common that hold an experts' projection: its attributes and its four inputs (weights,
// scales, global_scale and bias, in this order).
#pragma once

#include <string>

#include "core/expert_gemm.h"
#include "operators/operator_kernel.h"

namespace onnx_moe {

struct ProjectionSizes {
  int64_t num_experts = kUnknown;
  int64_t rows = kUnknown;
  int64_t columns = kUnknown;
  int64_t global_scales = 1;
};

// Where a projection's inputs are among a node's, and what their names begin with.
struct ProjectionInputs {
  size_t first;
  const char* prefix;

  InputName name(const char* end) const { return {prefix, end}; }
  size_t weights() const { return first; }
  size_t scales() const { return first + 1; }
  size_t global_scale() const { return first + 2; }
  size_t bias() const { return first + 3; }
};

BlockFormat read_format(const Attributes& attributes);
WeightLayout read_weight_layout(const Attributes& attributes);
Precision read_precision(const Attributes& attributes);

// Checks shapes against each other; open dimensions fit everything.
ProjectionSizes check_projection(const InputShapes& shapes, const ProjectionInputs& inputs, const BlockFormat& format);

// Throws an Error unless scales that the graph declares are of the format's type.
void check_scale_type(const ort::KernelInfo& info, const ProjectionInputs& inputs, const BlockFormat& format);

std::optional<Dimensions> dimensions_of(const std::optional<ort::ConstTensor>& tensor);

// The four inputs of a call.
struct ProjectionTensors {
  ort::ConstTensor weights;
  ort::ConstTensor scales;
  std::optional<ort::ConstTensor> global_scale;
  std::optional<ort::ConstTensor> bias;

  ProjectionTensors(const ort::KernelContext& context, const ProjectionInputs& inputs);
  void put_shapes(const ProjectionInputs& inputs, InputShapes& shapes) const;
  ExpertWeights as_weights(const BlockFormat& format, WeightLayout layout, const ProjectionSizes& sizes) const;
};

}  // namespace onnx_moe
