// The plans for Python: an operator's description as "name value" lines in, the plan as JSON out. It calls the planner
// of the host runtime, so that tests launch what the runtime launches.
#include <cstdio>
#include <map>
#include <sstream>
#include <string>

#include "operators/read_attributes.h"
#include "plan/plan.h"

namespace {

using namespace onnx_moe;
using metal::Plan;

constexpr const char* kTensorNames[] = {"x",           "gate_weight",       "gate_bias",     "correction_bias",
                                        "expert_ids",  "expert_weights",    "router_logits", "weights",
                                        "scales",      "global_scale",      "bias",          "down_weights",
                                        "down_scales", "down_global_scale", "down_bias",     "y"};

class Description {
 public:
  explicit Description(const std::string& text) {
    std::istringstream lines(text);
    std::string name, value;
    while (lines >> name >> value) values_[name] = value;
  }

  const std::string& text(const std::string& name) const {
    const auto found = values_.find(name);
    require(found != values_.end(), "the description lacks ", name);
    return found->second;
  }
  int64_t integer(const std::string& name) const { return std::stoll(text(name)); }
  float number(const std::string& name) const { return std::stof(text(name)); }
  ElementType type(const std::string& name) const { return static_cast<ElementType>(integer(name)); }
  // A pointer that says only whether the tensor is there.
  const void* given(const std::string& name) const { return values_.count(name + "_type") ? this : nullptr; }
  ElementType optional_type(const std::string& name) const {
    return given(name) ? type(name + "_type") : ElementType::kFloat;
  }

 private:
  std::map<std::string, std::string> values_;
};

RouterInput router_input(const Description& description) {
  RouterInput input{description.type("type"),
                    description.optional_type("gate_weight"),
                    description.optional_type("gate_bias"),
                    description.integer("tokens"),
                    description.integer("hidden_size"),
                    description.integer("routed_experts"),
                    nullptr,
                    description.given("gate_weight"),
                    description.given("gate_bias"),
                    static_cast<const float*>(description.given("correction_bias")),
                    nullptr,
                    nullptr,
                    nullptr};
  static float logits;
  if (description.given("router_logits")) input.router_logits = &logits;
  return input;
}

ExpertWeights expert_weights(const Description& description, const std::string& prefix) {
  const auto format = static_cast<Format>(description.integer("format"));
  return {make_block_format(format, description.integer("block_size")),
          WeightLayout::kRows,
          description.integer("num_experts"),
          description.integer(prefix + "rows"),
          description.integer(prefix + "columns"),
          nullptr,
          nullptr,
          static_cast<const float*>(description.given(prefix + "global_scale")),
          description.integer(prefix + "global_scales"),
          description.optional_type(prefix + "bias"),
          description.given(prefix + "bias")};
}

std::optional<metal::Regime> forced_regime(const Description& description) {
  const std::string& regime = description.text("regime");
  if (regime == "auto") return std::nullopt;
  return regime == "decode" ? metal::Regime::kDecode : regime == "few" ? metal::Regime::kFew : metal::Regime::kGrouped;
}

Plan make_plan(const Description& description) {
  const std::string& op = description.text("operator");
  if (op == "router") return metal::plan_router(read_router_attributes(description), router_input(description));
  if (op == "grouping") {
    return metal::plan_grouping(description.integer("assignments"), description.integer("num_experts"),
                                description.integer("tile_rows"));
  }
  const Activation function = read_activation(description);
  const ExpertWeights weights = expert_weights(description, "");
  if (op == "projection") {
    const ExpertGemmInput input{description.type("type"),
                                Precision{},
                                description.integer("tokens"),
                                description.integer("slots"),
                                description.integer("x_per_slot") != 0,
                                nullptr,
                                nullptr,
                                static_cast<const float*>(description.given("expert_weights")),
                                nullptr};
    return metal::plan_projection(function, weights, input, forced_regime(description));
  }
  require(op == "block", "operator ", op, " is unknown");
  const RouterAttributes router = read_router_attributes(description);
  const MoeBlock block{router, function, Precision{}, weights, expert_weights(description, "down_")};
  return metal::plan_block(block, router_input(description), forced_regime(description));
}

template <typename Items, typename Write>
void write_list(std::ostream& json, const Items& items, Write&& write) {
  json << '[';
  const char* separator = "";
  for (const auto& item : items) {
    json << separator;
    write(item);
    separator = ", ";
  }
  json << ']';
}

// {"bytes": [...]}, {"tensor": name or null}, or {"scratch": index}.
void write_argument(std::ostream& json, const metal::Argument& argument) {
  if (const auto* bytes = std::get_if<metal::Bytes>(&argument)) {
    json << R"({"bytes": )";
    const std::vector<unsigned char> content(bytes->data.begin(), bytes->data.begin() + bytes->size);
    write_list(json, content, [&](unsigned char byte) { json << static_cast<int>(byte); });
    json << '}';
  } else if (const auto* scratch = std::get_if<metal::Scratch>(&argument)) {
    json << R"({"scratch": )" << scratch->index << '}';
  } else if (std::get<metal::Tensor>(argument) == metal::Tensor::kNone) {
    json << R"({"tensor": null})";
  } else {
    json << R"({"tensor": ")" << kTensorNames[static_cast<size_t>(std::get<metal::Tensor>(argument))] << R"("})";
  }
}

std::string to_json(const Plan& plan) {
  std::ostringstream json;
  json << R"({"scratch": )";
  write_list(json, plan.scratch, [&](const metal::ScratchMemory& memory) {
    json << R"({"bytes": )" << memory.bytes << R"(, "zeroed": )" << (memory.zeroed ? "true" : "false") << '}';
  });
  json << R"(, "launches": )";
  write_list(json, plan.launches, [&](const metal::Launch& launch) {
    json << R"({"file": ")" << launch.file << R"(", "kernel": ")" << launch.kernel << R"(", "type": )"
         << static_cast<int>(launch.type) << R"(, "constants": )";
    write_list(json, launch.constants, [&](uint32_t constant) { json << constant; });
    json << R"(, "arguments": )";
    write_list(json, launch.arguments, [&](const metal::Argument& argument) { write_argument(json, argument); });
    json << R"(, "threadgroups": )";
    write_list(json, launch.threadgroups, [&](int64_t count) { json << count; });
    json << R"(, "threads": )" << launch.threads << '}';
  });
  json << '}';
  return json.str();
}

}  // namespace

// The plan's JSON, or "error: …"; valid until the thread's next call.
extern "C" __attribute__((visibility("default"))) const char* onnx_moe_metal_plan(const char* description) {
  thread_local std::string result;
  try {
    result = to_json(make_plan(Description(description)));
  } catch (const std::exception& error) {
    result = std::string("error: ") + error.what();
  }
  return result.c_str();
}
