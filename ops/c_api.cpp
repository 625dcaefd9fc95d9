// The C API over the core: arguments in, exceptions to error texts, everything on the calling thread.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "c_api_guard.h"
#include "c_api_matrix.h"
#include "c_api_types.h"
#include "core/accelerator.h"
#include "core/dispatch.h"
#include "core/error.h"
#include "core/expert_gemm.h"
#include "core/quantize.h"
#include "core/router.h"
#include "core/threaded_host.h"
#include "experts/cache_simulator.h"
#include "experts/residency_registry.h"
#include "experts/routing_recorder.h"
#include "kernels/registry.h"
#include "onnx_moe.h"

namespace onnx_moe {

namespace {

WeightLayout weight_layout(int32_t layout) {
  require(layout == ONNX_MOE_ROWS || layout == ONNX_MOE_INTERLEAVED, "weight layout ", layout,
          " is unknown: use ONNX_MOE_ROWS or ONNX_MOE_INTERLEAVED");
  return static_cast<WeightLayout>(layout);
}

std::vector<int64_t> keys(const int64_t* first, int64_t count) {
  return first ? std::vector<int64_t>(first, first + count) : std::vector<int64_t>();
}

ExpertBank expert_bank(const onnx_moe_cache_setup& setup) {
  require(setup.num_layers >= 1 && setup.num_experts >= 1, "the cache is for ", setup.num_layers, " layers of ",
          setup.num_experts, " experts: both must be at least 1");
  return {setup.num_layers, setup.num_experts};
}

std::unique_ptr<CachePolicy> cache_policy(const onnx_moe_cache_setup& setup, const RoutingTrace& trace) {
  const ExpertBank bank = expert_bank(setup);
  std::unique_ptr<CachePolicy> policy;
  if (setup.policy == ONNX_MOE_LRU) policy = std::make_unique<LruPolicy>();
  if (setup.policy == ONNX_MOE_DECAYED_LFU) policy = std::make_unique<DecayedLfuPolicy>(bank, setup.decay);
  if (setup.policy == ONNX_MOE_BELADY) policy = std::make_unique<BeladyPolicy>(bank, uses_of(bank, trace));
  require(policy != nullptr, "cache policy ", setup.policy, " is unknown: use a value of onnx_moe_cache_policy");
  if (setup.num_pinned == 0) return policy;
  return std::make_unique<PinnedPolicy>(bank, keys(setup.pinned, setup.num_pinned), std::move(policy));
}

}  // namespace

}  // namespace onnx_moe

struct onnx_moe_recording {
  std::vector<onnx_moe::RecordedLayer> layers;
  onnx_moe::RecordedCalls calls;
  int64_t dropped_calls = 0;
};

using onnx_moe::guarded;

const char* onnx_moe_version(void) { return ONNX_MOE_VERSION; }

const char* onnx_moe_last_error(void) { return onnx_moe::last_error().c_str(); }

const char* onnx_moe_kernel_name(int index) {
  const onnx_moe::Kernel* kernel = onnx_moe::available_kernel(index);
  return kernel ? kernel->name : nullptr;
}

int onnx_moe_use_kernel(const char* name) {
  return guarded([&] { onnx_moe::use_kernel(name); });
}

const char* onnx_moe_current_kernel(void) {
  const char* name = nullptr;
  guarded([&] { name = onnx_moe::current_kernel().name; });
  return name;
}

const char* onnx_moe_device(void) {
  const char* result = nullptr;
  guarded([&] {
    const onnx_moe::AcceleratorSearch& found = onnx_moe::find_accelerator();
    onnx_moe::require(found.accelerator != nullptr, found.reason);
    static const std::string description = found.accelerator->description();
    result = description.c_str();
  });
  return result;
}

namespace onnx_moe {

namespace {

ScaleRule checked_scale_rule(int32_t number) {
  require(number >= ONNX_MOE_SCALE_MSE && number <= ONNX_MOE_SCALE_RCEIL, "scale rule ", number,
          " is unknown: use a value of onnx_moe_scale_rule");
  return static_cast<ScaleRule>(number);
}

}  // namespace

}  // namespace onnx_moe

int onnx_moe_quantize(const void* weights, int32_t type, int32_t scale_rule, onnx_moe_fp4_matrix* out) {
  return guarded([&] {
    onnx_moe::quantize(onnx_moe::current_kernel(), {weights, onnx_moe::element_type(type), nullptr},
                       onnx_moe::checked_scale_rule(scale_rule), onnx_moe::fp4_matrix(*out));
  });
}

int onnx_moe_quantize_weighted(const void* weights, int32_t type, const float* importance, onnx_moe_fp4_matrix* out) {
  return guarded([&] {
    onnx_moe::quantize(onnx_moe::current_kernel(), {weights, onnx_moe::element_type(type), importance},
                       onnx_moe::ScaleRule::kMse, onnx_moe::fp4_matrix(*out));
  });
}

int onnx_moe_choose_global_scale(const void* weights, int32_t type, int32_t scale_rule, const float* importance,
                                 onnx_moe_fp4_matrix* out) {
  return guarded([&] {
    out->global_scale =
        onnx_moe::choose_global_scale(onnx_moe::current_kernel(), {weights, onnx_moe::element_type(type), importance},
                                      onnx_moe::checked_scale_rule(scale_rule), onnx_moe::fp4_matrix(*out));
  });
}

int onnx_moe_dequantize(const onnx_moe_fp4_matrix* matrix, float* weights) {
  return guarded([&] { onnx_moe::dequantize(onnx_moe::fp4_matrix(*matrix), weights); });
}

int onnx_moe_group_tokens(const void* expert_ids, int32_t id_bytes, int64_t tokens, int64_t slots, int64_t num_experts,
                          int64_t* order, int64_t* offsets, int64_t* inverse) {
  return guarded([&] {
    onnx_moe::require(id_bytes == 4 || id_bytes == 8, "id_bytes is ", id_bytes, ": use 4 (int32) or 8 (int64)");
    const auto group = [&](const auto* ids) {
      onnx_moe::group_tokens_by_expert(ids, tokens * slots, slots, num_experts, order, offsets, inverse);
    };
    id_bytes == 4 ? group(static_cast<const int32_t*>(expert_ids)) : group(static_cast<const int64_t*>(expert_ids));
  });
}

int onnx_moe_recording_label(const char* name, int32_t phase, int32_t request) {
  return guarded([&] { onnx_moe::find_recorder(name)->label(phase, request); });
}

int onnx_moe_recording_default_phase(const char* name, int32_t phase) {
  return guarded([&] { onnx_moe::find_recorder(name)->set_default_phase(phase); });
}

int onnx_moe_recording_clear(const char* name) {
  return guarded([&] { onnx_moe::find_recorder(name)->clear(); });
}

int onnx_moe_recording_take(const char* name, onnx_moe_recording** out) {
  return guarded([&] {
    auto recording = std::make_unique<onnx_moe_recording>();
    onnx_moe::find_recorder(name)->read(
        [&](const std::vector<const onnx_moe::RecordedLayer*>& layers, const auto& calls, int64_t dropped) {
          for (const onnx_moe::RecordedLayer* layer : layers) recording->layers.push_back(*layer);
          recording->calls = calls;
          recording->dropped_calls = dropped;
        });
    *out = recording.release();
  });
}

void onnx_moe_recording_free(onnx_moe_recording* recording) { std::unique_ptr<onnx_moe_recording>(recording).reset(); }

void onnx_moe_recording_calls(const onnx_moe_recording* recording, onnx_moe_recorded_calls* out) {
  const onnx_moe::RecordedCalls& calls = recording->calls;
  *out = {static_cast<int64_t>(recording->layers.size()),
          static_cast<int64_t>(calls.layers.size()),
          recording->dropped_calls,
          calls.layers.data(),
          calls.phases.data(),
          calls.requests.data(),
          calls.offsets.data(),
          calls.experts.data(),
          calls.weights.data()};
}

int onnx_moe_recording_layer(const onnx_moe_recording* recording, int64_t layer, onnx_moe_recorded_layer* out) {
  return guarded([&] {
    const auto layers = static_cast<int64_t>(recording->layers.size());
    onnx_moe::require(layer >= 0 && layer < layers, "layer ", layer, " is not recorded: there are ", layers);
    const onnx_moe::RecordedLayer& recorded = recording->layers[static_cast<size_t>(layer)];
    *out = {recorded.name.c_str(), recorded.num_experts, recorded.top_k, {}, {}, {}, {}};
    for (int phase = 0; phase < onnx_moe::kPhases; ++phase) {
      out->calls[phase] = recorded.calls[phase];
      out->tokens[phase] = recorded.tokens[phase];
      out->counts[phase] = recorded.counts[phase].data();
      out->mass[phase] = recorded.mass[phase].data();
    }
  });
}

int onnx_moe_simulate_cache(const onnx_moe_cache_setup* setup, const onnx_moe_routing_trace* trace,
                            onnx_moe_cache_counts* counts, uint8_t* outcomes, int64_t* evicted) {
  return guarded([&] {
    const onnx_moe::ExpertBank bank = onnx_moe::expert_bank(*setup);
    const onnx_moe::RoutingTrace routing{trace->num_visits, trace->layers, trace->offsets, trace->experts};
    routing.check(bank);
    const onnx_moe::CacheCounts result = onnx_moe::simulate_cache(
        {bank, setup->capacity, setup->layer_floor, setup->share,
         onnx_moe::keys(setup->preloaded, setup->num_preloaded)},
        onnx_moe::cache_policy(*setup, routing), routing, reinterpret_cast<onnx_moe::Outcome*>(outcomes), evicted);
    *counts = {result.hits, result.misses, result.evictions, result.bypassed};
  });
}

int onnx_moe_residency(const char* session, const char** json) {
  return guarded([&] {
    thread_local std::string text;
    text = onnx_moe::find_engine(session)->statistics().to_json();
    *json = text.c_str();
  });
}

int onnx_moe_set_cache_bytes(const char* session, const char* budget) {
  return guarded([&] { onnx_moe::find_engine(session)->set_budget(budget); });
}

int onnx_moe_save_counters(const char* session, const char* path) {
  return guarded([&] { onnx_moe::find_engine(session)->save_counters(path); });
}

int onnx_moe_router(const onnx_moe_router_args* args) {
  return guarded([&] {
    const onnx_moe::RouterAttributes attributes{args->top_k,
                                                onnx_moe::parse_scoring(args->scoring),
                                                args->normalize != 0,
                                                args->norm_epsilon,
                                                args->norm_min,
                                                args->scaling_factor,
                                                args->num_groups,
                                                args->top_k_groups,
                                                onnx_moe::parse_group_scoring(args->group_scoring),
                                                args->num_shared_experts};
    onnx_moe::validate(attributes, args->num_experts);
    const auto gate_type = onnx_moe::element_type(args->gate_type);
    onnx_moe::ThreadedHost host;
    onnx_moe::route(onnx_moe::current_kernel(), attributes,
                    {onnx_moe::element_type(args->type), gate_type, gate_type, args->tokens, args->hidden_size,
                     args->num_experts, args->hidden_states, args->gate_weight, args->gate_bias, args->correction_bias,
                     args->expert_ids, args->expert_weights, args->router_logits},
                    host);
  });
}

int onnx_moe_expert_gemm(const onnx_moe_expert_gemm_args* args) {
  return guarded([&] {
    const onnx_moe::Activation activation{onnx_moe::parse_function(args->activation),
                                          args->gated != 0,
                                          args->interleaved != 0,
                                          args->alpha,
                                          args->beta,
                                          args->limit};
    const onnx_moe::ExpertWeights weights{
        onnx_moe::block_format(args->format, args->block_size),
        onnx_moe::weight_layout(args->weight_layout),
        args->num_experts,
        args->rows,
        args->columns,
        args->weights,
        args->scales,
        args->global_scale,
        args->global_scale ? args->global_scales : 1,
        args->bias ? onnx_moe::element_type(args->bias_type) : onnx_moe::ElementType::kFloat,
        args->bias};
    onnx_moe::validate(weights, activation);
    onnx_moe::ThreadedHost host;
    onnx_moe::expert_gemm(
        onnx_moe::current_kernel(), activation, weights,
        {onnx_moe::element_type(args->type), onnx_moe::precision_of(args->accuracy_level), args->tokens, args->slots,
         args->x_per_slot != 0, args->x, args->expert_ids, args->expert_weights, args->y},
        nullptr, host);
  });
}
