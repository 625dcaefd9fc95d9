#include "core/activation.h"

#include "core/error.h"

namespace onnx_moe {

Function parse_function(const std::string& name) {
  if (name == "none") return Function::kNone;
  if (name == "silu") return Function::kSilu;
  if (name == "gelu") return Function::kGelu;
  if (name == "gelu_tanh") return Function::kGeluTanh;
  if (name == "relu") return Function::kRelu;
  if (name == "relu2") return Function::kRelu2;
  fail("activation '", name, "' is unknown: use none, silu, gelu, gelu_tanh, relu or relu2");
}

void validate(const Activation& activation, int64_t rows) {
  require(activation.alpha == 1.0f || activation.function == Function::kSilu, "alpha ", activation.alpha,
          " does nothing without activation 'silu': set it, or leave alpha out");
  require(activation.limit >= 0.0f, "limit ", activation.limit, " is negative: use a positive limit, or 0 for none");
  if (activation.gated) {
    require(rows % 2 == 0, "gated needs an even number of weight rows (gate and up), not ", rows);
    return;
  }
  require(!activation.interleaved,
          "gate_layout 'interleaved' does nothing without gated: set gated to 1, or leave it out");
  require(activation.beta == 0.0f, "beta ", activation.beta,
          " does nothing without gated: set gated to 1, or leave it out");
  require(activation.limit == 0.0f, "limit ", activation.limit,
          " does nothing without gated: set gated to 1, or leave it out");
}

}  // namespace onnx_moe
