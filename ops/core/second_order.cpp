#include "core/second_order.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/lanes.h"

namespace onnx_moe {

namespace {

// Sixteen rows of a lot, column by column.
struct Tile {
  float weights[kLotColumns][kLanes];
  float errors[kLotColumns][kLanes];
  uint32_t codes[kLotColumns][kLanes];
};

// A block of a tile, rounded with one scale a row.
struct RoundedBlock {
  int scale_codes[kLanes];
  float errors[kLargestBlock][kLanes];
  uint32_t codes[kLargestBlock][kLanes];
  float cost[kLanes];
};

struct LaneScales {
  float values[kLanes];
  float inverses[kLanes];
};

void load_rows(const float* columns, int64_t stride, int64_t count, int64_t rows, float (*tile)[kLanes]) {
  for (int64_t c = 0; c < count; ++c) {
    std::fill(tile[c], tile[c] + kLanes, 0.0f);
    std::memcpy(tile[c], columns + c * stride, static_cast<size_t>(rows) * sizeof(float));
  }
}

void store_rows(const float (*tile)[kLanes], int64_t stride, int64_t count, int64_t rows, float* columns) {
  for (int64_t c = 0; c < count; ++c) {
    std::memcpy(columns + c * stride, tile[c], static_cast<size_t>(rows) * sizeof(float));
  }
}

void store_codes(const Tile& tile, const Fp4Matrix& matrix, const MatrixPart& part, int64_t row, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    uint8_t* bytes = matrix.codes + ((row + r) * matrix.columns + part.first_column) / 2;
    for (int64_t c = 0; c < part.columns; c += 2) {
      bytes[c / 2] = static_cast<uint8_t>(tile.codes[c][r] | tile.codes[c + 1][r] << 4);
    }
  }
}

// The nearest value of FP4 to `target`, its code, and the code's value.
ONNX_MOE_INLINE void round_lanes(const Lanes& target, const Lanes& scales, const Lanes& inverses, LaneWords& codes,
                                 Lanes& value) {
  const LaneWords signs = (LaneWords)target & 0x80000000u;
  Lanes rounded = target;
  absolute(rounded);
  rounded *= inverses;
  round_to_e2m1(rounded);
  e2m1_codes(rounded, codes);
  codes |= signs >> 28;
  value = (Lanes)((LaneWords)(rounded * scales) | signs);
}

ONNX_MOE_WIDE void round_block(const Tile& tile, int64_t first, int64_t size, const float* feedback, int64_t stride,
                               const float* pivots, const LaneScales& lane_scales, RoundedBlock& out) {
  Lanes shifts[kLargestBlock], scales, inverses, cost{};
  load(lane_scales.values, scales);
  load(lane_scales.inverses, inverses);
  for (int64_t i = 0; i < size; ++i) load(tile.errors[first + i], shifts[i]);
  for (int64_t i = 0; i < size; ++i) {
    Lanes weight, value;
    LaneWords codes;
    load(tile.weights[first + i], weight);
    const Lanes target = weight + shifts[i];
    round_lanes(target, scales, inverses, codes, value);
    const Lanes missed = (target - value) * pivots[i];
    cost += missed * missed;
    const Lanes error = weight - value;
    for (int64_t k = i + 1; k < size; ++k) shifts[k] += error * feedback[i * stride + k];
    store(error, out.errors[i]);
    std::memcpy(out.codes[i], &codes, sizeof codes);
  }
  store(cost, out.cost);
}

// Rows of `tried` that cost less replace those of `best`.
ONNX_MOE_WIDE void keep_better(const RoundedBlock& tried, int64_t size, RoundedBlock& best) {
  Lanes cost, best_cost;
  load(tried.cost, cost);
  load(best.cost, best_cost);
  const LaneWords better = (LaneWords)(cost < best_cost);
  for (int64_t i = 0; i < size; ++i) {
    Lanes error, best_error;
    load(tried.errors[i], error);
    load(best.errors[i], best_error);
    store((Lanes)(((LaneWords)error & better) | ((LaneWords)best_error & ~better)), best.errors[i]);
    LaneWords codes, best_codes;
    std::memcpy(&codes, tried.codes[i], sizeof codes);
    std::memcpy(&best_codes, best.codes[i], sizeof codes);
    best_codes = (codes & better) | (best_codes & ~better);
    std::memcpy(best.codes[i], &best_codes, sizeof best_codes);
  }
  for (int r = 0; r < kLanes; ++r) {
    if (!(tried.cost[r] < best.cost[r])) continue;
    best.cost[r] = tried.cost[r];
    best.scale_codes[r] = tried.scale_codes[r];
  }
}

// Adds to columns last … end of the tile what errors first … last of it ask for.
ONNX_MOE_WIDE void make_up(Tile& tile, int64_t first, int64_t last, int64_t end, const float* feedback,
                           int64_t stride) {
  for (int64_t i = first; i < last; ++i) {
    Lanes error;
    load(tile.errors[i], error);
    for (int64_t k = last; k < end; ++k) {
      Lanes shift;
      load(tile.errors[k], shift);
      shift += error * feedback[i * stride + k];
      store(shift, tile.errors[k]);
    }
  }
}

ONNX_MOE_WIDE void descend_block(Tile& tile, float (*gradients)[kLanes], int64_t first, int64_t last, int64_t end,
                                 const float* hessian, int64_t stride, const LaneScales& lane_scales) {
  Lanes scales, inverses;
  load(lane_scales.values, scales);
  load(lane_scales.inverses, inverses);
  for (int64_t i = first; i < last; ++i) {
    Lanes weight, error, gradient, value;
    LaneWords codes;
    load(tile.weights[i], weight);
    load(tile.errors[i], error);
    load(gradients[i], gradient);
    const float* row = hessian + i * stride;
    round_lanes(weight - error + gradient * (1.0f / row[i]), scales, inverses, codes, value);
    std::memcpy(tile.codes[i], &codes, sizeof codes);
    const Lanes moved = weight - value;
    const Lanes change = moved - error;
    store(moved, tile.errors[i]);
    for (int64_t k = i + 1; k < end; ++k) {
      load(gradients[k], gradient);
      gradient += change * row[k];
      store(gradient, gradients[k]);
    }
  }
}

// Rounds tiles of one matrix.
class TileRounder {
 public:
  TileRounder(const Fp4Matrix& matrix, const MatrixPart& part, const ColumnErrors& state, const Feedback& order)
      : matrix_(matrix),
        part_(part),
        state_(state),
        chooser_(matrix.format, ScaleRule::kMse, matrix.global_scale),
        feedback_(order.feedback + part.first_column * (matrix.columns + 1)),
        pivots_(order.pivots + part.first_column) {
    for (int64_t c = 0; c < part.columns; ++c) importance_[c] = pivots_[c] * pivots_[c];
  }

  void round(int64_t row, int64_t rows) {
    const int64_t start = part_.first_column * matrix_.rows + row, size = matrix_.format.block_size;
    load_rows(state_.weights + start, matrix_.rows, part_.columns, rows, tile_.weights);
    load_rows(state_.errors + start, matrix_.rows, part_.columns, rows, tile_.errors);
    for (int64_t first = 0; first < part_.columns; first += size) {
      choose_scales(first, row, rows);
      for (int r = 0; r < rows; ++r) store_scale_code(matrix_, scale_index(row + r, first), best_.scale_codes[r]);
      std::memcpy(tile_.errors[first], best_.errors, static_cast<size_t>(size) * sizeof best_.errors[0]);
      std::memcpy(tile_.codes[first], best_.codes, static_cast<size_t>(size) * sizeof best_.codes[0]);
      make_up(tile_, first, first + size, part_.columns, feedback_, matrix_.columns);
    }
    store_rows(tile_.errors, matrix_.rows, part_.columns, rows, state_.errors + start);
    store_codes(tile_, matrix_, part_, row, rows);
  }

 private:
  int64_t scale_index(int64_t row, int64_t column) const {
    const int64_t size = matrix_.format.block_size;
    return row * (matrix_.columns / size) + (part_.first_column + column) / size;
  }

  // Leaves the block at column `first` in best_, each row with the scale that costs least.
  void choose_scales(int64_t first, int64_t row, int64_t rows) {
    int start[kLanes] = {};
    for (int64_t r = 0; r < rows; ++r) start[r] = least_error_code(first, row, r);
    try_scales(first, start, 0, best_);
    for (const int step : {-1, 1}) {
      try_scales(first, start, step, tried_);
      keep_better(tried_, matrix_.format.block_size, best_);
    }
  }

  int least_error_code(int64_t first, int64_t row, int64_t r) const {
    float targets[kLargestBlock], largest = 0.0f;
    for (int64_t i = 0; i < matrix_.format.block_size; ++i) {
      targets[i] = tile_.weights[first + i][r] + tile_.errors[first + i][r];
      require(std::isfinite(targets[i]), "weights become ", targets[i], " at row ", row + r, ", column ",
              part_.first_column + first + i, ": only finite weights can be quantized");
      largest = std::max(largest, std::fabs(targets[i]));
    }
    return chooser_.choose({targets, importance_ + first, largest}).code;
  }

  void try_scales(int64_t first, const int (&start)[kLanes], int step, RoundedBlock& out) const {
    LaneScales scales;
    for (int r = 0; r < kLanes; ++r) {
      out.scale_codes[r] = chooser_.neighbour(start[r], step);
      scales.values[r] = chooser_.scale(out.scale_codes[r]);
      scales.inverses[r] = chooser_.inverse(out.scale_codes[r]);
    }
    round_block(tile_, first, matrix_.format.block_size, feedback_ + first * (matrix_.columns + 1), matrix_.columns,
                pivots_ + first, scales, out);
  }

  const Fp4Matrix& matrix_;
  const MatrixPart& part_;
  const ColumnErrors& state_;
  const ScaleChooser chooser_;
  const float* feedback_;  // of the part's own columns
  const float* pivots_;
  float importance_[kLotColumns];
  Tile tile_;
  RoundedBlock best_, tried_;
};

void check_part(const Fp4Matrix& matrix, const MatrixPart& part) {
  require(part.first_row >= 0 && part.rows >= 0 && part.first_row + part.rows <= matrix.rows, "rows ", part.first_row,
          " … ", part.first_row + part.rows, " are not within the matrix's ", matrix.rows);
  const int64_t size = matrix.format.block_size;
  require(part.first_column >= 0 && part.columns >= 0 && part.first_column + part.columns <= matrix.columns &&
              part.columns <= kLotColumns && part.first_column % size == 0 && part.columns % size == 0,
          "columns ", part.first_column, " … ", part.first_column + part.columns, " are not whole blocks of ", size,
          " within the matrix's ", matrix.columns, ", ", kLotColumns, " at most");
}

}  // namespace

void round_columns(const Fp4Matrix& matrix, const MatrixPart& part, const ColumnErrors& state, const Feedback& order) {
  check_part(matrix, part);
  TileRounder rounder(matrix, part, state, order);
  for (int64_t r = 0; r < part.rows; r += kLanes) {
    rounder.round(part.first_row + r, std::min<int64_t>(kLanes, part.rows - r));
  }
}

void descend_columns(const Fp4Matrix& matrix, const MatrixPart& part, const ColumnErrors& state, const float* hessian,
                     const float* gradients) {
  check_part(matrix, part);
  const ScaleChooser scales(matrix.format, ScaleRule::kMse, matrix.global_scale);
  const float* own_hessian = hessian + part.first_column * (matrix.columns + 1);
  const int64_t size = matrix.format.block_size;
  Tile tile;
  float tile_gradients[kLotColumns][kLanes];
  LaneScales lane_scales;
  for (int64_t done = 0; done < part.rows; done += kLanes) {
    const int64_t row = part.first_row + done, rows = std::min<int64_t>(kLanes, part.rows - done);
    const int64_t start = part.first_column * matrix.rows + row;
    load_rows(state.weights + start, matrix.rows, part.columns, rows, tile.weights);
    load_rows(state.errors + start, matrix.rows, part.columns, rows, tile.errors);
    load_rows(gradients + row, matrix.rows, part.columns, rows, tile_gradients);
    for (int64_t first = 0; first < part.columns; first += size) {
      for (int64_t r = 0; r < kLanes; ++r) {
        const int64_t own_row = row + std::min(r, rows - 1);
        const int code = load_scale_code(matrix, (own_row * matrix.columns + part.first_column + first) / size);
        lane_scales.values[r] = scales.scale(code);
        lane_scales.inverses[r] = scales.inverse(code);
      }
      descend_block(tile, tile_gradients, first, first + size, part.columns, own_hessian, matrix.columns, lane_scales);
    }
    store_rows(tile.errors, matrix.rows, part.columns, rows, state.errors + start);
    store_codes(tile, matrix, part, row, rows);
  }
}

}  // namespace onnx_moe
