#include "core/expert_gemm.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "core/dispatch.h"
#include "core/error.h"

namespace onnx_moe {

namespace {

// Output columns are split into tiles, and a task computes one tile of every expert. All tasks cost the same then,
// however skewed the routing is, and a task holds all that a token's combine needs. Tiles are as wide as keeping all
// cores busy to the end allows: long runs through the weights, and activations that are read once for many of them.
constexpr int64_t kTilesPerCore = 4;
constexpr int64_t kMaxTileColumns = 256;
constexpr int64_t kFewRows = 6;           // of an expert: kernels stream the weights, and take a tile as a whole
constexpr int64_t kProductFloats = 8192;  // of one product: 32 KiB, on the stack
static_assert(kMaxRows * kMaxPanelRows <= kProductFloats && kFewRows * 2 * kMaxTileColumns <= kProductFloats);
constexpr int64_t kRowBytes = 1024 * 1024;  // of activations that a tile's weights meet in the second cache

// One call: what the tasks share.
struct Call {
  const Kernel& kernel;
  const Activation& activation;
  const ExpertWeights& weights;
  const ExpertGemmInput& input;
  Operands operands;
  const ExpertGroups& groups;
  const float* values;    // activations as floats, one row of x after the other; null if no expert needs them
  const uint8_t* packed;  // activations as the kernel packed them; null likewise
  int64_t packed_bytes;
  int64_t output_columns;
  int64_t tile_columns;

  int bands() const { return activation.gated ? 2 : 1; }
  // Columns of a band, with room for whole panels.
  int64_t padded(int64_t columns) const {
    const int64_t panel = kMaxPanelRows / bands();
    return (columns + panel - 1) / panel * panel;
  }
};

int64_t choose_tile_columns(int64_t output_columns, int bands) {
  static const int64_t tiles = kTilesPerCore * std::max(1u, std::thread::hardware_concurrency());
  const int64_t panel = kMaxPanelRows / bands;
  const int64_t columns = (output_columns / tiles + panel - 1) / panel * panel;
  return std::clamp(columns, panel, kMaxTileColumns);
}

Fp4Tile make_tile(const Call& call, int64_t expert, int64_t first_column) {
  const ExpertWeights& weights = call.weights;
  const int64_t expert_rows = expert * weights.rows;
  Fp4Tile tile{weights.codes + expert_rows * call.operands.row_bytes(),
               static_cast<const uint8_t*>(weights.scales) + expert_rows * call.operands.scale_row_bytes(),
               std::min(call.tile_columns, call.output_columns - first_column),
               call.bands(),
               {{first_column, 1}, {0, 0}},
               nullptr};
  if (!call.activation.gated) return tile;
  if (call.activation.interleaved) {
    tile.band[0] = {2 * first_column, 2};
    tile.band[1] = {2 * first_column + 1, 2};
  } else {
    tile.band[1] = {weights.rows / 2 + first_column, 1};
  }
  return tile;
}

// A tile's biases as floats, a band after the other; nothing without bias.
struct TileBias {
  float values[2 * kMaxTileColumns];
  const float* band[2] = {nullptr, nullptr};
};

void load_bias(const Call& call, int64_t expert, const Fp4Tile& tile, TileBias& bias) {
  const ExpertWeights& weights = call.weights;
  if (!weights.bias) return;
  const int64_t expert_row = expert * weights.rows;
  for (int b = 0; b < tile.bands; ++b) {
    float* target = bias.values + b * kMaxTileColumns;
    bias.band[b] = target;
    const int64_t first = expert_row + tile.band[b].first;
    if (tile.band[b].step == 1) {
      call.kernel.widen(weights.bias_type, element_at(weights.bias_type, weights.bias, first), tile.columns, target);
      continue;
    }
    for (int64_t c = 0; c < tile.columns; ++c) {
      target[c] = load_element(weights.bias_type, weights.bias, first + c * tile.band[b].step);
    }
  }
}

// `columns` columns of the tile from its column `first` on.
Fp4Tile part_of(const Fp4Tile& tile, int64_t first, int64_t columns) {
  Fp4Tile part = tile;
  part.columns = std::min(columns, tile.columns - first);
  for (WeightBand& band : part.band) band.first += first * band.step;
  return part;
}

// What a task works on: a tile of one expert, whose results go to `results` [assignments, columns of the whole tile],
// to be combined, or to y.
struct Work {
  const Call& call;
  const Fp4Tile& tile;
  Epilogue epilogue;  // of the whole tile
  float* results;

  int64_t first_column() const { return tile.band[0].first / tile.band[0].step; }
};

// Rows of one expert; `assignments` are their flat indices.
struct RowSet {
  const float* values[kMaxRows];
  const uint8_t* packed[kMaxRows];
  const int64_t* assignments;
  int64_t count;
};

void collect_rows(const Call& call, int64_t first, int64_t count, RowSet& rows) {
  const int64_t slots_per_row = call.input.x_per_slot ? 1 : call.input.slots;
  rows.assignments = call.groups.order() + first;
  rows.count = count;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t row = rows.assignments[r] / slots_per_row;
    rows.values[r] = call.values + row * call.operands.depth;
    rows.packed[r] = call.packed + row * call.packed_bytes;
  }
}

// Finished rows into y, from the tile's column `first` on, in the type that y has.
void write_rows(const Work& work, const Epilogue& epilogue, int64_t first, const RowSet& rows) {
  const Call& call = work.call;
  const ElementType type = call.input.type;
  const int64_t column = work.first_column() + first;
  const auto offset = [&](int64_t r) { return rows.assignments[r] * call.output_columns + column; };
  float* targets[kMaxRows];
  const bool direct = work.results || type == ElementType::kFloat;
  for (int64_t r = 0; r < rows.count; ++r) {
    if (work.results) {
      targets[r] = work.results + rows.assignments[r] * work.tile.columns + first;
    } else {
      // The other types are rounded from the place of the products.
      targets[r] = direct ? static_cast<float*>(call.input.y) + offset(r)
                          : epilogue.products.data + r * epilogue.products.stride;
    }
  }
  call.kernel.finish(epilogue, rows.count, targets);
  for (int64_t r = 0; !direct && r < rows.count; ++r) {
    call.kernel.narrow(type, targets[r], epilogue.columns, element_at(type, call.input.y, offset(r)));
  }
}

// Products of the rows with `part`, which starts at the tile's column `first`.
void multiply_part(const Work& work, const Fp4Tile& part, int64_t first, const RowSet& rows) {
  const Call& call = work.call;
  const int64_t band_stride = call.padded(part.columns);
  alignas(64) float products[kProductFloats];
  Epilogue epilogue = work.epilogue;
  epilogue.products = {products, part.bands * band_stride, band_stride};
  epilogue.columns = part.columns;
  if (epilogue.gate_bias) epilogue.gate_bias += first;
  if (epilogue.up_bias) epilogue.up_bias += first;
  call.kernel.fp4_products(call.operands, part, {rows.values, rows.packed, rows.count}, epilogue.products);
  write_rows(work, epilogue, first, rows);
}

// Columns of a band whose products with `rows` rows are computed at once. A few rows take the tile as a whole; more
// rows take it panel by panel, so that a panel is decoded once for all, or, interleaved, as many columns as there is
// room for products: the more there are, the longer a row's activations stay in the first cache.
int64_t columns_at_once(const Call& call, int64_t rows) {
  if (rows <= kFewRows) return kMaxTileColumns;
  const int64_t panel = kMaxPanelRows / call.bands();
  if (call.operands.layout == WeightLayout::kRows) return panel;
  return std::min(kProductFloats / (rows * kMaxPanelRows) * panel, kMaxTileColumns);
}

void multiply_rows(const Work& work, const RowSet& rows) {
  const Fp4Tile& tile = work.tile;
  const int64_t panel = columns_at_once(work.call, rows.count);
  for (int64_t first = 0; first < tile.columns; first += panel) {
    Fp4Tile part = part_of(tile, first, panel);
    Fp4Tile next;
    if (first + panel < tile.columns) {
      next = part_of(tile, first + panel, panel);
      part.next = &next;
    }
    multiply_part(work, part, first, rows);
  }
}

void compute_expert(const Call& call, int64_t expert, Fp4Tile tile, float* results) {
  TileBias bias;
  load_bias(call, expert, tile, bias);
  const ExpertWeights& weights = call.weights;
  const float* scale = weights.global_scale ? weights.global_scale + expert * weights.global_scales : nullptr;
  const Epilogue epilogue{&call.activation,
                          {},
                          scale ? scale[0] : 1.0f,
                          scale ? scale[weights.global_scales - 1] : 1.0f,
                          bias.band[0],
                          bias.band[1],
                          tile.columns};
  // Sets of nearly equal size, so that each decodes the weights for as many rows as the others.
  const int64_t bytes = std::max<int64_t>(call.packed_bytes, call.operands.depth);
  const int64_t most = std::clamp<int64_t>(kRowBytes / bytes, 8 * kFewRows, kMaxRows);
  const int64_t end = call.groups.end(expert);
  int64_t first = call.groups.begin(expert);
  for (int64_t sets = (end - first + most - 1) / most; sets > 0; --sets) {
    RowSet rows;
    collect_rows(call, first, (end - first) / sets, rows);
    first += rows.count;
    multiply_rows({call, tile, epilogue, results}, rows);
    tile.next = nullptr;  // one fetch is enough
  }
}

void combine(const Call& call, int64_t first_column, int64_t columns, const float* results) {
  const ExpertGemmInput& input = call.input;
  for (int64_t token = 0; token < input.tokens; ++token) {
    const float* weights = input.expert_weights + token * input.slots;
    const float* rows = results + token * input.slots * columns;
    const int64_t offset = token * call.output_columns + first_column;
    if (input.type == ElementType::kFloat) {
      call.kernel.combine(weights, rows, input.slots, columns, static_cast<float*>(input.y) + offset);
      continue;
    }
    float sums[kMaxTileColumns];
    call.kernel.combine(weights, rows, input.slots, columns, sums);
    call.kernel.narrow(input.type, sums, columns, element_at(input.type, input.y, offset));
  }
}

void compute_columns(const Call& call, int64_t first_column, float* results) {
  const ExpertGroups& groups = call.groups;
  Fp4Tile tile = make_tile(call, groups.active(0), first_column);
  for (int64_t i = 0; i < groups.active_count(); ++i) {
    // Another thread may take the next columns; fetching the start of its tile costs less than waiting for one's own.
    Fp4Tile next{};
    const int64_t next_column = first_column + tile.columns;
    const bool last = i + 1 == groups.active_count();
    if (!last) next = make_tile(call, groups.active(i + 1), first_column);
    if (last && next_column < call.output_columns) next = make_tile(call, groups.active(0), next_column);
    tile.next = next.codes ? &next : nullptr;
    compute_expert(call, groups.active(i), tile, results);
    if (!last) tile = next;
  }
  if (results) combine(call, first_column, tile.columns, results);
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

// The activations in the forms that some expert's row count asks for.
struct Activations {
  bool needs_values = false;
  bool needs_packed = false;

  Activations(const Kernel& kernel, const ExpertGroups& groups, const Operands& operands) {
    for (int64_t i = 0; i < groups.active_count(); ++i) {
      const bool reads_packed = kernel.reads_packed(operands, groups.rows(i));
      needs_packed |= reads_packed;
      needs_values |= !reads_packed;
    }
  }
};

void prepare_rows(const Kernel& kernel, const Operands& operands, const ExpertGemmInput& input, int64_t rows,
                  float* widened, uint8_t* packed, Host& host) {
  const bool is_float = input.type == ElementType::kFloat;
  const int64_t packed_bytes = kernel.packed_bytes(operands);
  parallel_for_rows(host, rows, [&](int64_t row) {
    const float* values = static_cast<const float*>(input.x) + row * operands.depth;
    if (!is_float) {
      float* wide = widened + row * operands.depth;
      kernel.widen(input.type, element_at(input.type, input.x, row * operands.depth), operands.depth, wide);
      values = wide;
    }
    if (packed) kernel.pack(operands, values, packed + row * packed_bytes);
  });
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

void expert_gemm(const Kernel& kernel, const Activation& activation, const ExpertWeights& weights,
                 const ExpertGemmInput& input, const ExpertGroups& groups, Host& host) {
  const int64_t assignments = input.tokens * input.slots;
  if (assignments == 0) return;
  const Operands operands{weights.format, weights.layout, input.precision, weights.columns};
  const int64_t rows = input.x_per_slot ? assignments : input.tokens;
  const Activations forms(kernel, groups, operands);
  const bool is_float = input.type == ElementType::kFloat;
  const int64_t packed_bytes = kernel.packed_bytes(operands);
  const Scratch<float> widened(host, is_float ? 0 : rows * operands.depth);
  const Scratch<uint8_t> packed(host, forms.needs_packed ? rows * packed_bytes : 0);
  if (!is_float || forms.needs_packed) {
    prepare_rows(kernel, operands, input, rows, widened.data(), forms.needs_packed ? packed.data() : nullptr, host);
  }

  const int64_t output_columns = activation.output_columns(weights.rows);
  const Call call{kernel,
                  activation,
                  weights,
                  input,
                  operands,
                  groups,
                  is_float ? static_cast<const float*>(input.x) : widened.data(),
                  packed.data(),
                  packed_bytes,
                  output_columns,
                  choose_tile_columns(output_columns, activation.gated ? 2 : 1)};
  const int64_t tiles = (output_columns + call.tile_columns - 1) / call.tile_columns;
  std::atomic<int64_t> next_tile{0};
  parallel_for(host, tiles, [&](int64_t) {
    int64_t tile = next_tile++;
    if (tile >= tiles) return;
    // One thread's, for all the tiles that it takes.
    const Scratch<float> results(host, input.expert_weights ? assignments * call.tile_columns : 0);
    for (; tile < tiles; tile = next_tile++) {
      compute_columns(call, tile * call.tile_columns, input.expert_weights ? results.data() : nullptr);
    }
  });
}

void expert_gemm(const Kernel& kernel, const Activation& activation, const ExpertWeights& weights,
                 const ExpertGemmInput& input, Host& host) {
  const ExpertGroups groups(input.expert_ids, input.tokens, input.slots, weights.num_experts, host);
  expert_gemm(kernel, activation, weights, input, groups, host);
}

}  // namespace onnx_moe
