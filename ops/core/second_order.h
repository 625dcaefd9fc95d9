// Quantising for the inputs that a matrix meets, a lot of columns at a time: rounding whose errors later columns make
// up for, and moving codes one at a time. Rows are independent, so that any split of them gives the same result.
#pragma once

#include <cstdint>

#include "core/quantize.h"

namespace onnx_moe {

// Columns of a lot at most; what they do to the columns behind the lot is a matrix product for the caller.
inline constexpr int64_t kLotColumns = 128;

// The part of a matrix that a call works on. Columns: whole blocks, kLotColumns at most.
struct MatrixPart {
  int64_t first_row;
  int64_t rows;
  int64_t first_column;
  int64_t columns;
};

// Weights W and errors W − Q of a matrix [N, K], both column by column: value (column, row) at column · N + row.
struct ColumnErrors {
  const float* weights;
  float* errors;
};

// Of the Hessian H = (U D) (U D)ᵀ, U upper with a diagonal of ones. feedback: U, of which element (i, j) says how much
// of an error of column i is added to what is to be rounded in column j. pivots: the diagonal of D. A column's error,
// with what the columns before it made of it, counts with the square of its pivot.
struct Feedback {
  const float* feedback;  // [K, K], row by row
  const float* pivots;    // [K], finite and > 0
};

// Scales, codes and errors of a part. Errors hold on entry what the columns before the part ask to be added to its
// weights, and W − Q afterwards. A block's scale is the one that leaves the least of three: the least-error scale of
// what is to be rounded, and its neighbours. An Error for a NaN or an infinity.
void round_columns(const Fp4Matrix& matrix, const MatrixPart& part, const ColumnErrors& state, const Feedback& order);

// Moves every code of a part in turn to the best one for Σ over rows of e H eᵀ, e = W − Q, while all others stay.
// gradients: (W − Q) H [part columns, N], column by column, as of entry. hessian: [K, K].
void descend_columns(const Fp4Matrix& matrix, const MatrixPart& part, const ColumnErrors& state, const float* hessian,
                     const float* gradients);

}  // namespace onnx_moe
