#include "core/expert_gemm.h"

#include <algorithm>

#include "core/dispatch.h"
#include "core/error.h"

namespace onnx_moe {

namespace {

// Bytes of codes in a tile. Small enough that one token at k = 1 keeps every core busy, large enough that claiming
// a tile (~0.1 µs) does not show: 128 KiB take about 10 µs to read.
constexpr int64_t kTileBytes = 128 * 1024;
constexpr int64_t kMaxTileColumns = 128;

struct Tile {
  int32_t expert;
  int32_t rows;
  int64_t first_row;  // position in expert order
  int64_t first_column;
  int64_t columns;
};

// One call: what the tiles share.
struct Call {
  const Kernel& kernel;
  const Activation& activation;
  const ExpertWeights& weights;
  const ExpertGemmInput& input;
  const int64_t* order;
  const float* packed;
  int64_t packed_size;
  float* results;  // [tokens · slots, N'] before the combine; null when y is written directly
  int64_t output_columns;
};

int64_t tile_columns(const ExpertWeights& weights, const Activation& activation) {
  const int64_t bytes = weights.columns / 2 * (activation.gated ? 2 : 1);
  const int64_t columns = kTileBytes / std::max<int64_t>(bytes, 1) / 16 * 16;
  return std::clamp<int64_t>(columns, 16, kMaxTileColumns);
}

template <typename Visit>
void for_each_tile(const int64_t* offsets, const ExpertWeights& weights, const Activation& activation, Visit&& visit) {
  const int64_t columns = tile_columns(weights, activation);
  const int64_t output_columns = activation.output_columns(weights.rows);
  for (int64_t expert = 0; expert < weights.num_experts; ++expert) {
    for (int64_t row = offsets[expert]; row < offsets[expert + 1]; row += kMaxRows) {
      const int64_t rows = std::min(kMaxRows, offsets[expert + 1] - row);
      for (int64_t column = 0; column < output_columns; column += columns) {
        visit(Tile{static_cast<int32_t>(expert), static_cast<int32_t>(rows), row, column,
                   std::min(columns, output_columns - column)});
      }
    }
  }
}

// A tile's biases as floats: `gate` and `up` point into `buffer`, or are null.
struct TileBias {
  float buffer[2 * kMaxTileColumns];
  const float* gate = nullptr;
  const float* up = nullptr;
};

// Weight rows of a tile: output column c is made of rows gate_row + c·step and, gated, up_row + c·step.
struct TileRows {
  int64_t gate_row;
  int64_t up_row;
  int64_t step;
};

TileRows tile_rows(const Call& call, const Tile& tile) {
  if (!call.activation.gated) return {tile.first_column, 0, 1};
  if (call.activation.interleaved) return {2 * tile.first_column, 2 * tile.first_column + 1, 2};
  return {tile.first_column, call.weights.rows / 2 + tile.first_column, 1};
}

void load_bias(const Call& call, const Tile& tile, const TileRows& rows, TileBias& bias) {
  const ExpertWeights& weights = call.weights;
  if (!weights.bias) return;
  const auto widen = [&](int64_t first, int64_t count, float* target) {
    call.kernel.widen(weights.bias_type,
                      element_at(weights.bias_type, weights.bias, tile.expert * weights.rows + first), count, target);
  };
  bias.gate = bias.buffer;
  if (rows.step == 2) {
    widen(rows.gate_row, 2 * tile.columns, bias.buffer);
    bias.up = bias.buffer + 1;
    return;
  }
  widen(rows.gate_row, tile.columns, bias.buffer);
  if (!call.activation.gated) return;
  widen(rows.up_row, tile.columns, bias.buffer + kMaxTileColumns);
  bias.up = bias.buffer + kMaxTileColumns;
}

void write_row(const Call& call, const Tile& tile, const Epilogue& epilogue, int64_t assignment) {
  const int64_t offset = assignment * call.output_columns + tile.first_column;
  if (call.results) return call.kernel.finish(epilogue, call.results + offset);
  if (call.input.type == ElementType::kFloat)
    return call.kernel.finish(epilogue, static_cast<float*>(call.input.y) + offset);
  float row[kMaxTileColumns];
  call.kernel.finish(epilogue, row);
  call.kernel.narrow(call.input.type, row, tile.columns, element_at(call.input.type, call.input.y, offset));
}

void multiply(const Call& call, const Tile& tile, const TileRows& tile_rows, const Rows& rows, float* gate, float* up) {
  const ExpertWeights& weights = call.weights;
  const int64_t expert_rows = tile.expert * weights.rows;
  Fp4Tile fp4{weights.format,
              weights.codes + expert_rows * (weights.columns / 2),
              static_cast<const char*>(weights.scales) +
                  expert_rows * weights.format.blocks(weights.columns) * weights.format.scale_bytes(),
              weights.columns,
              tile_rows.gate_row,
              tile.columns * tile_rows.step};
  call.kernel.fp4_products(fp4, rows, {gate, 2 * kMaxTileColumns});
  if (!call.activation.gated || tile_rows.step == 2) return;
  fp4.first = tile_rows.up_row;
  call.kernel.fp4_products(fp4, rows, {up, 2 * kMaxTileColumns});
}

void compute_tile(const Call& call, const Tile& tile) {
  const int64_t slots_per_row = call.input.x_per_slot ? 1 : call.input.slots;
  const float* row_data[kMaxRows];
  for (int64_t r = 0; r < tile.rows; ++r) {
    row_data[r] = call.packed + call.order[tile.first_row + r] / slots_per_row * call.packed_size;
  }
  alignas(64) float products[kMaxRows * 2 * kMaxTileColumns];
  const TileRows rows = tile_rows(call, tile);
  float* gate = products;
  float* up = products + (rows.step == 2 ? 1 : kMaxTileColumns);
  multiply(call, tile, rows, {row_data, tile.rows}, gate, up);

  TileBias bias;
  load_bias(call, tile, rows, bias);
  const ExpertWeights& weights = call.weights;
  const float* scale = weights.global_scale ? weights.global_scale + tile.expert * weights.global_scales : nullptr;
  Epilogue epilogue{&call.activation,
                    gate,
                    up,
                    rows.step,
                    scale ? scale[0] : 1.0f,
                    scale ? scale[weights.global_scales - 1] : 1.0f,
                    bias.gate,
                    bias.up,
                    tile.columns};
  for (int64_t r = 0; r < tile.rows; ++r) {
    write_row(call, tile, epilogue, call.order[tile.first_row + r]);
    epilogue.gate += 2 * kMaxTileColumns;
    epilogue.up += 2 * kMaxTileColumns;
  }
}

// Rows handed to one task of the passes over rows, which cost little for each.
constexpr int64_t kRowsPerTask = 16;

template <typename Body>
void parallel_for_rows(Host& host, int64_t rows, Body&& body) {
  parallel_for(host, (rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < end; ++row) body(row);
  });
}

void pack_rows(const Kernel& kernel, const ExpertGemmInput& input, int64_t depth, int64_t packed_size, float* packed,
               Host& host) {
  const int64_t rows = input.x_per_slot ? input.tokens * input.slots : input.tokens;
  if (input.type == ElementType::kFloat) {
    const auto* x = static_cast<const float*>(input.x);
    parallel_for_rows(host, rows,
                      [&](int64_t row) { kernel.pack(x + row * depth, depth, packed + row * packed_size); });
    return;
  }
  const int64_t tasks = (rows + kRowsPerTask - 1) / kRowsPerTask;
  const Scratch<float> widened(host, tasks * depth);
  parallel_for_rows(host, rows, [&](int64_t row) {
    float* wide = widened.data() + row / kRowsPerTask * depth;
    kernel.widen(input.type, element_at(input.type, input.x, row * depth), depth, wide);
    kernel.pack(wide, depth, packed + row * packed_size);
  });
}

void combine(const Call& call, Host& host) {
  const ExpertGemmInput& input = call.input;
  const int64_t columns = call.output_columns;
  const bool direct = input.type == ElementType::kFloat;
  const int64_t tasks = (input.tokens + kRowsPerTask - 1) / kRowsPerTask;
  const Scratch<float> sums(host, direct ? 1 : tasks * columns);
  parallel_for_rows(host, input.tokens, [&](int64_t token) {
    float* sum = direct ? static_cast<float*>(input.y) + token * columns : sums.data() + token / kRowsPerTask * columns;
    for (int64_t slot = 0; slot < input.slots; ++slot) {
      const int64_t assignment = token * input.slots + slot;
      call.kernel.accumulate(input.expert_weights[assignment], call.results + assignment * columns, columns, slot == 0,
                             sum);
    }
    if (!direct) call.kernel.narrow(input.type, sum, columns, element_at(input.type, input.y, token * columns));
  });
}

}  // namespace

void validate(const ExpertWeights& weights, const Activation& activation) {
  const int64_t block = weights.format.block_size;
  require(weights.num_experts > 0 && weights.rows > 0 && weights.columns > 0, "weights hold ", weights.num_experts,
          " experts of ", weights.rows, " rows and ", weights.columns, " columns: none of them may be 0");
  require(weights.columns % block == 0, "weights have ", weights.columns,
          " columns (K), which is no multiple of the block of ", block, ": pad K with zeros");
  validate(activation, weights.rows);
  require(weights.global_scales == 1 || activation.gated,
          "global_scale has two columns (gate, up), but gated is 0: use one scale an expert");
}

void expert_gemm(const Kernel& kernel, const Activation& activation, const ExpertWeights& weights,
                 const ExpertGemmInput& input, Host& host) {
  const int64_t assignments = input.tokens * input.slots;
  if (assignments == 0) return;
  const Scratch<int64_t> groups(host, assignments + weights.num_experts + 1);
  int64_t* order = groups.data();
  int64_t* offsets = order + assignments;
  group_tokens_by_expert<int32_t, int64_t>(input.expert_ids, assignments, input.slots, weights.num_experts, order,
                                           offsets, nullptr);

  const int64_t packed_size = kernel.packed_size(weights.columns);
  const Scratch<float> packed(host, (input.x_per_slot ? assignments : input.tokens) * packed_size);
  pack_rows(kernel, input, weights.columns, packed_size, packed.data(), host);

  const int64_t output_columns = activation.output_columns(weights.rows);
  const Scratch<float> results(host, input.expert_weights ? assignments * output_columns : 1);
  const Call call{kernel,        activation,    weights,     input,
                  order,         packed.data(), packed_size, input.expert_weights ? results.data() : nullptr,
                  output_columns};

  int64_t tile_count = 0;
  for_each_tile(offsets, weights, activation, [&](const Tile&) { ++tile_count; });
  const Scratch<Tile> tiles(host, tile_count);
  Tile* next = tiles.data();
  for_each_tile(offsets, weights, activation, [&](const Tile& tile) { *next++ = tile; });
  parallel_for(host, tile_count, [&](int64_t i) { compute_tile(call, tiles[i]); });
  if (input.expert_weights) combine(call, host);
}

}  // namespace onnx_moe
