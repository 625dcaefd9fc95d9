// Tiles of MoEExpertGemmFP4: some output columns of a set of experts, computed by one thread.
#pragma once

#include <cstdint>

#include "core/dispatch.h"
#include "core/expert_weights.h"

namespace onnx_moe {

// One call of the operator: what its tiles share.
struct TileCall {
  const Kernel& kernel;
  Activation activation;
  ExpertWeights weights;
  ExpertGemmInput input;
  Operands operands;
  const ExpertGroups& groups;
  const float* values;    // activations as floats, one row of x after the other; null if no expert needs them
  const uint8_t* packed;  // activations as the kernel packed them; null likewise
  int64_t packed_bytes;
  int64_t output_columns;
  int64_t tile_columns;

  int64_t tiles() const { return (output_columns + tile_columns - 1) / tile_columns; }
  // Floats of all assignments' results in a tile.
  int64_t tile_results() const { return input.tokens * input.slots * tile_columns; }
  int bands() const { return activation.gated ? 2 : 1; }
  // Columns of a band, with room for whole panels.
  int64_t padded(int64_t columns) const {
    const int64_t panel = kMaxPanelRows / bands();
    return (columns + panel - 1) / panel * panel;
  }
};

// Columns of a tile: wide enough for long runs through the weights, and enough tiles to keep all cores busy to the end.
int64_t choose_tile_columns(int64_t output_columns, int bands);

// Computes the columns from `first_column` on of every expert of the set. Results go to `results` [assignments, columns
// of the tile], to be combined, or, where it is null, to y.
void compute_tile(const TileCall& call, const ExpertSet& set, int64_t first_column, float* results);

// Columns of y from `results` of all assignments: summed in the order of the slots.
void combine_tile(const TileCall& call, int64_t first_column, const float* results);

}  // namespace onnx_moe
