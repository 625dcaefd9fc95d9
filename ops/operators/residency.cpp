#include "operators/residency.h"

#include <utility>

#include "operators/session_entry.h"

namespace onnx_moe {

namespace {

constexpr const char* kResidency = "onnx_moe.residency";
constexpr const char* kPrefetch = "onnx_moe.prefetch";
constexpr const char* kPrecision = "onnx_moe.prefetch_precision";
constexpr const char* kCounters = "onnx_moe.counters";
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
  if (const auto text = read_for_pool(info, kPrefetch, options.mode)) {
    options.prefetch = parse_prefetch_signal(kPrefetch, *text);
  }
  if (const auto text = read_for_pool(info, kPrecision, options.mode)) {
    require(options.prefetch != PrefetchSignalKind::kNone, "session entry ", kPrecision, " is '", *text,
            "', but does nothing without ", kPrefetch, ": set it, or leave this out");
    options.prefetch_precision = parse_share(kPrecision, *text);
  }
  options.counters = read_for_pool(info, kCounters, options.mode).value_or("");
  options.save_counters = read_for_pool(info, "onnx_moe.save_counters", options.mode).value_or("");
  if (const auto text = read_for_pool(info, "onnx_moe.pinned", options.mode)) {
    require(!options.counters.empty(), "session entry onnx_moe.pinned is '", *text, "', but does nothing without ",
            kCounters, ", which says what is used most: set it, or leave this out");
    options.pinned = SlotShare::parse("onnx_moe.pinned", *text);
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

// A cache that was asked for and is not there is a surprise; everything else is as asked.
void report(const ort::Logger& logger, const ResidencyPlan& plan) {
  const std::string message = std::string("expert residency is ") + name_of(plan.mode) + ": " + plan.reason;
  if (!plan.unused.empty()) {
    logger.warn(message + "; " + plan.unused + " does nothing here");
  } else {
    logger.note(message);
  }
}

}  // namespace

std::shared_ptr<ResidencyEngine> session_engine(const ort::KernelInfo& info) {
  const ResidencyOptions options = read_options(info);
  const ort::Logger logger = info.logger();
  return session_engine(logger.session(), info.config_entry("onnx_moe.session").value_or(""), options,
                        [=](const ResidencyPlan& plan) { report(logger, plan); });
}

ExpertResidency::ExpertResidency(const ort::KernelInfo& info, const std::vector<ProjectionInputs>& projections,
                                 int64_t top_k)
    : engine_(session_engine(info)) {
  ExpertLayer layer{info.node_name(), num_experts(info, projections.front()), std::max<int64_t>(top_k, 1), {}};
  for (const ProjectionInputs& inputs : projections) {
    layer.projections.push_back({find_tensor(info, inputs.weights(), inputs.name("weights")),
                                 find_tensor(info, inputs.scales(), inputs.name("scales"))});
  }
  layer_ = engine_->add_layer(std::move(layer));
}

std::string ExpertResidency::unsupported() {
  const ResidencyMode mode = engine_->mode();
  if (mode == ResidencyMode::kMapped) return "";
  return std::string("expert residency is ") + name_of(mode) + ", and the device takes experts that are mapped";
}

std::unique_ptr<ExpertSource> ExpertResidency::open(const int32_t* expert_ids, int64_t count) {
  return engine_->open(layer_, expert_ids, count);
}

}  // namespace onnx_moe
