#include "operators/residency.h"

#include <utility>

#include "operators/session_entry.h"

namespace onnx_moe {

namespace {

constexpr const char* kResidency = "onnx_moe.residency";
constexpr int64_t kMostThreads = 64;

// The value of an entry that only some modes read.
std::optional<std::string> read_for_pool(const ort::KernelInfo& info, const char* entry, ResidencyMode mode) {
  std::optional<std::string> value = info.config_entry(entry);
  require(!value || mode == ResidencyMode::kAuto || mode == ResidencyMode::kPool, "session entry ", entry, " is '",
          value.value_or(""), "', but does nothing when ", kResidency, " is ", name_of(mode), ": use pool or auto");
  return value;
}

ResidencyOptions read_options(const ort::KernelInfo& info) {
  ResidencyOptions options;
  options.mode = parse_residency(info.config_entry(kResidency).value_or("auto"));
  if (const auto text = read_for_pool(info, "onnx_moe.cache_bytes", options.mode)) {
    options.budget = CacheBudget::parse(*text);
  }
  if (const auto text = read_for_pool(info, "onnx_moe.cache_policy", options.mode)) {
    options.policy = parse_eviction_policy(*text);
  }
  if (const auto text = read_for_pool(info, "onnx_moe.direct_io", options.mode)) {
    options.direct_io = parse_direct_io(*text);
  }
  if (const auto text = read_for_pool(info, "onnx_moe.io_threads", options.mode)) {
    options.threads = parse_count("onnx_moe.io_threads", *text, kMostThreads,
                                  "use a number from 1 to " + std::to_string(kMostThreads));
  }
  const bool on_device = info.config_entry("onnx_moe.device").value_or("auto") == "metal";
  require(!on_device || options.mode == ResidencyMode::kAuto || options.mode == ResidencyMode::kMapped,
          "session entry ", kResidency, " is '", name_of(options.mode),
          "', but onnx_moe.device = metal takes experts that are mapped: use ", "mapped, or onnx_moe.device = cpu");
  if (on_device) options.mode = ResidencyMode::kMapped;
  return options;
}

ExpertTensor find_tensor(const ort::KernelInfo& info, size_t index, const InputName& name) {
  const std::optional<ort::ConstTensor> tensor = info.constant_input(index);
  ExpertTensor found{std::string(name.prefix) + name.name};
  if (!tensor) return found;
  found.memory = tensor->as<uint8_t>();
  found.expert_bytes = ort::element_bytes(tensor->type());
  for (size_t i = 1; i < tensor->dimensions().size(); ++i) found.expert_bytes *= tensor->dimensions()[i];
  return found;
}

int64_t num_experts(const ort::KernelInfo& info, const ProjectionInputs& inputs) {
  const std::optional<ort::Shape> shape = info.input_shape(inputs.weights());
  return shape && !shape->dimensions.empty() ? shape->dimensions[0] : kUnknown;
}

// A budget that bounds nothing is a surprise to whoever set it; everything else is as asked.
void report(const ort::Logger& logger, const ResidencyOptions& options, const ResidencyPlan& plan) {
  const std::string message = std::string("expert residency is ") + name_of(plan.mode) + ": " + plan.reason;
  const bool unused_budget = plan.mode == ResidencyMode::kMapped && !options.budget.automatic();
  if (unused_budget) {
    logger.warn(message + "; onnx_moe.cache_bytes bounds nothing here");
  } else {
    logger.note(message);
  }
}

}  // namespace

ExpertResidency::ExpertResidency(const ort::KernelInfo& info, const std::vector<ProjectionInputs>& projections,
                                 int64_t top_k) {
  const ResidencyOptions options = read_options(info);
  const ort::Logger logger = info.logger();
  engine_ = session_engine(logger.session(), info.config_entry("onnx_moe.session").value_or(""), options,
                           [=](const ResidencyPlan& plan) { report(logger, options, plan); });
  ExpertLayer layer{info.node_name(), num_experts(info, projections.front()), std::max<int64_t>(top_k, 1), {}};
  for (const ProjectionInputs& inputs : projections) {
    layer.projections.push_back({find_tensor(info, inputs.weights(), inputs.name("weights")),
                                 find_tensor(info, inputs.scales(), inputs.name("scales"))});
  }
  layer_ = engine_->add_layer(std::move(layer));
}

std::unique_ptr<ExpertSource> ExpertResidency::open(const int32_t* expert_ids, int64_t count) {
  return engine_->open(layer_, expert_ids, count);
}

}  // namespace onnx_moe
