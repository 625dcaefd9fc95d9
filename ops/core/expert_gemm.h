// MoEExpertGemmFP4 without ONNX Runtime: dispatch, tiles, epilogue, combine.
#pragma once

#include <cstdint>
#include <optional>

#include "core/activation.h"
#include "core/dispatch.h"
#include "core/expert_source.h"
#include "core/expert_tiles.h"
#include "core/expert_weights.h"
#include "core/parallel.h"

namespace onnx_moe {

// A call of the operator, computed set of experts by set of experts.
//
// Same inputs, same bytes: how a product is summed depends on shapes and routing alone, never on threads, tiles or
// sets.
class ExpertGemm {
 public:
  // Kernel, groups, host and all memory must outlive the call. Rows of x that belong to a slot are read when their
  // expert's set is computed, others at once.
  ExpertGemm(const Kernel& kernel, const Activation& activation, const ExpertWeights& weights,
             const ExpertGemmInput& input, const ExpertGroups& groups, Host& host);
  ExpertGemm(const ExpertGemm&) = delete;
  ExpertGemm& operator=(const ExpertGemm&) = delete;

  // All experts at once, and the combine.
  void compute_all();
  // Some of them; each exactly once, then the combine.
  void compute(const ExpertSet& set);
  void combine();

 private:
  void prepare_rows(int64_t count, const int64_t* assignments);
  void compute_tiles(const ExpertSet& set, bool combined);

  Host& host_;
  PackedForms forms_;
  Scratch<float> widened_;
  Scratch<uint8_t> packed_;
  std::optional<Scratch<float>> results_;  // of all assignments, where sets are computed one by one
  TileCall call_;
};

// Computes y; `experts` (may be null) says where the weights are when they are not where `weights` has them.
void expert_gemm(const Kernel& kernel, const Activation& activation, const ExpertWeights& weights,
                 const ExpertGemmInput& input, ExpertProvider* experts, Host& host);

// The precision that an accuracy_level of the operators allows.
Precision precision_of(int64_t accuracy_level);

// Throws an Error unless N = `rows` rows can lie in the layout.
void validate(WeightLayout layout, int64_t rows, const Activation& activation);

// Throws an Error unless sizes, format and activation fit together.
void validate(const ExpertWeights& weights, const Activation& activation);

}  // namespace onnx_moe
