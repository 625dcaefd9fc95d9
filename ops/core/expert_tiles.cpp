#include "core/expert_tiles.h"

#include <algorithm>
#include <thread>

namespace onnx_moe {

namespace {

// Output columns are split into tiles, and a task computes one tile of every expert. All tasks cost the same then,
// however skewed the routing is, and a task holds all that a token's combine needs. Tiles are as wide as keeping all
// cores busy to the end allows: long runs through the weights, and activations that are read once for many of them.
constexpr int64_t kTilesPerCore = 4;
constexpr int64_t kMaxTileColumns = 256;
constexpr int64_t kFewRows = 6;  // of an expert: kernels stream the weights, and take a tile as a whole
static_assert(kMaxRows * kMaxPanelRows <= kNarrowProducts && kFewRows * 2 * kMaxTileColumns <= kNarrowProducts);
constexpr int64_t kRowBytes = 1024 * 1024;  // of activations that a tile's weights meet in the second cache

Fp4Tile make_tile(const TileCall& call, int64_t expert, int64_t first_column) {
  const ExpertWeights& weights = call.weights;
  const ExpertData data = weights.expert(expert);
  Fp4Tile tile{data.codes,
               data.scales,
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

void load_bias(const TileCall& call, int64_t expert, const Fp4Tile& tile, TileBias& bias) {
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
  const TileCall& call;
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

void collect_rows(const TileCall& call, int64_t first, int64_t count, RowSet& rows) {
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
  const TileCall& call = work.call;
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
  const TileCall& call = work.call;
  const int64_t band_stride = call.padded(part.columns);
  alignas(64) float products[kWideProducts];
  Epilogue epilogue = work.epilogue;
  epilogue.products = {products, part.bands * band_stride, band_stride};
  epilogue.columns = part.columns;
  if (epilogue.gate_bias) epilogue.gate_bias += first;
  if (epilogue.up_bias) epilogue.up_bias += first;
  call.kernel.fp4_products(call.operands, part, {rows.values, rows.packed, rows.count}, epilogue.products);
  write_rows(work, epilogue, first, rows);
}

// Columns of a band whose products with `rows` rows are computed at once. A few rows take the tile as a whole; more
// rows take it panel by panel, so that a panel is decoded once for all, or, interleaved or gathered, as many columns as
// there is room for products: the more there are, the longer a row's activations stay in the first cache.
int64_t columns_at_once(const TileCall& call, int64_t rows) {
  if (rows <= kFewRows) return kMaxTileColumns;
  const int64_t panel = kMaxPanelRows / call.bands();
  const int64_t products = call.kernel.product_floats;
  if (call.operands.layout == WeightLayout::kRows && products == kNarrowProducts) return panel;
  return std::min(products / (rows * kMaxPanelRows) * panel, kMaxTileColumns);
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

void compute_expert(const TileCall& call, int64_t expert, Fp4Tile tile, float* results) {
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

}  // namespace

int64_t choose_tile_columns(int64_t output_columns, int bands) {
  static const int64_t tiles = kTilesPerCore * std::max(1u, std::thread::hardware_concurrency());
  const int64_t panel = kMaxPanelRows / bands;
  const int64_t columns = (output_columns / tiles + panel - 1) / panel * panel;
  return std::clamp(columns, panel, kMaxTileColumns);
}

void compute_tile(const TileCall& call, const ExpertSet& set, int64_t first_column, float* results) {
  Fp4Tile tile = make_tile(call, set.experts[0], first_column);
  for (int64_t i = 0; i < set.count; ++i) {
    // Another thread may take the next columns; fetching the start of its tile costs less than waiting for one's own.
    Fp4Tile next{};
    const int64_t next_column = first_column + tile.columns;
    const bool last = i + 1 == set.count;
    if (!last) next = make_tile(call, set.experts[i + 1], first_column);
    if (last && next_column < call.output_columns) next = make_tile(call, set.experts[0], next_column);
    tile.next = next.codes ? &next : nullptr;
    compute_expert(call, set.experts[i], tile, results);
    if (!last) tile = next;
  }
}

void combine_tile(const TileCall& call, int64_t first_column, const float* results) {
  const int64_t columns = std::min(call.tile_columns, call.output_columns - first_column);
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

}  // namespace onnx_moe
