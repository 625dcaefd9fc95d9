// The C API of routing sketches.
#include <memory>
#include <type_traits>
#include <variant>

#include "c_api_guard.h"
#include "experts/routing_sketch.h"
#include "onnx_moe.h"

struct onnx_moe_sketch {
  onnx_moe::RoutingSketch sketch;
};

using onnx_moe::guarded;

int onnx_moe_sketch_create(int64_t num_layers, int64_t num_experts, int64_t top_k, onnx_moe_sketch** out) {
  return guarded([&] {
    onnx_moe::check_sketch_sizes({num_layers, num_experts}, top_k);
    *out = std::make_unique<onnx_moe_sketch>(onnx_moe_sketch{{{num_layers, num_experts}, top_k}}).release();
  });
}

void onnx_moe_sketch_free(onnx_moe_sketch* sketch) { const std::unique_ptr<onnx_moe_sketch> owned(sketch); }

int onnx_moe_sketch_add(onnx_moe_sketch* sketch, const onnx_moe_traced_calls* calls) {
  return guarded([&] {
    sketch->sketch.add({calls->num_calls, calls->layers, calls->phases, calls->requests, calls->offsets, calls->experts,
                        calls->weights, calls->probabilities});
  });
}

int onnx_moe_sketch_column(const onnx_moe_sketch* sketch, const char* name, const void** data, int64_t* length,
                           int32_t* number) {
  return guarded([&] {
    std::visit(
        [&](const auto* column) {
          using Number = typename std::decay_t<decltype(*column)>::value_type;
          *data = column->data();
          *length = static_cast<int64_t>(column->size());
          *number = std::is_same_v<Number, double>     ? ONNX_MOE_DOUBLE
                    : std::is_same_v<Number, uint32_t> ? ONNX_MOE_UINT32
                                                       : ONNX_MOE_INT64;
        },
        sketch->sketch.column(name));
  });
}
