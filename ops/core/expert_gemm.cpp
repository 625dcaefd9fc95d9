#include "core/expert_gemm.h"

#include <algorithm>
#include <atomic>

#include "core/error.h"

namespace onnx_moe {

namespace {

// Rows handed to one task of the passes over rows, which cost little for each.
constexpr int64_t kRowsPerTask = 16;

template <typename Body>
void parallel_for_rows(Host& host, int64_t rows, Body&& body) {
  parallel_for(host, (rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < end; ++row) body(row);
  });
}

Operands operands_of(const ExpertWeights& weights, const ExpertGemmInput& input) {
  return {weights.format, weights.layout, input.precision, weights.columns};
}

int64_t input_rows(const ExpertGemmInput& input) {
  return input.x_per_slot ? input.tokens * input.slots : input.tokens;
}

// The packed forms of activations that some expert's row count asks for.
PackedForms forms_of(const Kernel& kernel, const ExpertGroups& groups, const Operands& operands) {
  PackedForms forms = 0;
  for (int64_t i = 0; i < groups.active_count(); ++i) forms |= kernel.forms(operands, groups.rows(i));
  return forms;
}

}  // namespace

Precision precision_of(int64_t accuracy_level) {
  return accuracy_level >= 4 ? Precision::kInt8 : accuracy_level >= 2 ? Precision::kHalf : Precision::kFloat;
}

void validate(WeightLayout layout, int64_t rows, const Activation& activation) {
  if (layout == WeightLayout::kRows) return;
  const int64_t multiple = kGroupRows * (activation.gated ? 2 : 1);
  require(!activation.interleaved, "weight_layout interleaved takes gate_layout concatenated, not interleaved: put ",
          "the gate rows first");
  require(rows % multiple == 0, "weights have ", rows, " rows (N), but weight_layout interleaved takes a multiple of ",
          multiple, ": use weight_layout rows");
}

void validate(const ExpertWeights& weights, const Activation& activation) {
  const int64_t block = weights.format.block_size;
  require(weights.num_experts > 0 && weights.rows > 0 && weights.columns > 0, "weights hold ", weights.num_experts,
          " experts of ", weights.rows, " rows and ", weights.columns, " columns: none of them may be 0");
  require(weights.columns % block == 0, "weights have ", weights.columns,
          " columns (K), which is no multiple of the block of ", block, ": pad K with zeros");
  validate(activation, weights.rows);
  validate(weights.layout, weights.rows, activation);
  require(weights.global_scales == 1 || activation.gated,
          "global_scale has two columns (gate, up), but gated is 0: use one scale an expert");
}

ExpertGemm::ExpertGemm(const Kernel& kernel, const Activation& activation, const ExpertWeights& weights,
                       const ExpertGemmInput& input, const ExpertGroups& groups, Host& host)
    : host_(host),
      forms_(forms_of(kernel, groups, operands_of(weights, input))),
      widened_(host, input.type == ElementType::kFloat ? 0 : input_rows(input) * weights.columns),
      packed_(host, forms_ ? input_rows(input) * kernel.packed_bytes(operands_of(weights, input)) : 0),
      call_{kernel,
            activation,
            weights,
            input,
            operands_of(weights, input),
            groups,
            input.type == ElementType::kFloat ? static_cast<const float*>(input.x) : widened_.data(),
            packed_.data(),
            kernel.packed_bytes(operands_of(weights, input)),
            activation.output_columns(weights.rows),
            choose_tile_columns(activation.output_columns(weights.rows), activation.gated ? 2 : 1)} {
  if (!input.x_per_slot) prepare_rows(input_rows(input), nullptr);
}

// Rows of x in the forms that kernels read: all of them, or those of `assignments`.
void ExpertGemm::prepare_rows(int64_t count, const int64_t* assignments) {
  const ExpertGemmInput& input = call_.input;
  const bool is_float = input.type == ElementType::kFloat;
  if (is_float && !forms_) return;
  const int64_t depth = call_.operands.depth;
  parallel_for_rows(host_, count, [&](int64_t index) {
    const int64_t row = assignments ? assignments[index] : index;
    if (!is_float) {
      call_.kernel.widen(input.type, element_at(input.type, input.x, row * depth), depth,
                         widened_.data() + row * depth);
    }
    if (forms_) {
      call_.kernel.pack(call_.operands, forms_, call_.values + row * depth, packed_.data() + row * call_.packed_bytes);
    }
  });
}

void ExpertGemm::compute_all() {
  if (call_.input.x_per_slot) prepare_rows(input_rows(call_.input), nullptr);
  compute_tiles(call_.groups.active_set(), true);
}

void ExpertGemm::compute(const ExpertSet& set) {
  const ExpertGemmInput& input = call_.input;
  if (input.expert_weights && !results_) {
    results_.emplace(host_, input.tokens * input.slots * call_.tiles() * call_.tile_columns);
  }
  for (int64_t i = 0; input.x_per_slot && i < set.count; ++i) {
    const int64_t begin = call_.groups.begin(set.experts[i]);
    prepare_rows(call_.groups.end(set.experts[i]) - begin, call_.groups.order() + begin);
  }
  compute_tiles(set, false);
}

void ExpertGemm::combine() {
  if (!results_) return;
  parallel_for(host_, call_.tiles(), [&](int64_t tile) {
    combine_tile(call_, tile * call_.tile_columns, results_->data() + tile * call_.tile_results());
  });
}

void ExpertGemm::compute_tiles(const ExpertSet& set, bool combined) {
  const bool per_thread = combined && call_.input.expert_weights;
  const int64_t tiles = call_.tiles();
  std::atomic<int64_t> next_tile{0};
  parallel_for(host_, tiles, [&](int64_t) {
    int64_t tile = next_tile++;
    if (tile >= tiles) return;
    // One thread's, for all the tiles that it takes.
    const Scratch<float> own(host_, per_thread ? call_.tile_results() : 0);
    for (; tile < tiles; tile = next_tile++) {
      const int64_t first_column = tile * call_.tile_columns;
      float* results = per_thread ? own.data() : results_ ? results_->data() + tile * call_.tile_results() : nullptr;
      compute_tile(call_, set, first_column, results);
      if (per_thread) combine_tile(call_, first_column, results);
    }
  });
}

void expert_gemm(const Kernel& kernel, const Activation& activation, const ExpertWeights& weights,
                 const ExpertGemmInput& input, ExpertProvider* experts, Host& host) {
  const int64_t assignments = input.tokens * input.slots;
  if (assignments == 0) return;
  const ExpertGroups groups(input.expert_ids, input.tokens, input.slots, weights.num_experts, host);
  const std::unique_ptr<ExpertSource> source = experts ? experts->open(input.expert_ids, assignments) : nullptr;
  ExpertGemm gemm(kernel, activation, source ? weights.at(source->resident(0)) : weights, input, groups, host);
  if (!source) return gemm.compute_all();
  for (ExpertSet set = source->next(); set.count > 0; set = source->next()) gemm.compute(set);
  gemm.combine();
}

}  // namespace onnx_moe
