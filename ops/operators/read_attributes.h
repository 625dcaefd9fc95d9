// Attributes of the operators as the core's structures. `Source` has integer(name), number(name) and text(name): a
// node's Attributes, or whatever else names an operator's attributes.
#pragma once

#include "core/activation.h"
#include "core/router.h"

namespace onnx_moe {

template <typename Source>
RouterAttributes read_router_attributes(const Source& source) {
  return {source.integer("top_k"),
          parse_scoring(source.text("scoring")),
          source.integer("normalize") != 0,
          source.number("norm_epsilon"),
          source.number("norm_min"),
          source.number("scaling_factor"),
          source.integer("num_groups"),
          source.integer("top_k_groups"),
          parse_group_scoring(source.text("group_scoring")),
          source.integer("num_shared_experts")};
}

template <typename Source>
Activation read_activation(const Source& source) {
  return {parse_function(source.text("activation")),
          source.integer("gated") != 0,
          source.text("gate_layout") == "interleaved",
          source.number("alpha"),
          source.number("beta"),
          source.number("limit")};
}

}  // namespace onnx_moe
