// The C API over quantising for the inputs that a matrix meets.
#include "c_api_guard.h"
#include "c_api_matrix.h"
#include "core/second_order.h"
#include "onnx_moe.h"

namespace onnx_moe {

namespace {

MatrixPart matrix_part(const onnx_moe_matrix_part& part) {
  return {part.first_row, part.rows, part.first_column, part.columns};
}

}  // namespace

}  // namespace onnx_moe

using onnx_moe::guarded;

int onnx_moe_round_columns(const float* weights, float* errors, const float* feedback, const float* pivots,
                           const onnx_moe_matrix_part* part, onnx_moe_fp4_matrix* out) {
  return guarded([&] {
    onnx_moe::round_columns(onnx_moe::fp4_matrix(*out), onnx_moe::matrix_part(*part), {weights, errors},
                            {feedback, pivots});
  });
}

int onnx_moe_descend_columns(const float* weights, float* errors, const float* hessian, const float* gradients,
                             const onnx_moe_matrix_part* part, onnx_moe_fp4_matrix* out) {
  return guarded([&] {
    onnx_moe::descend_columns(onnx_moe::fp4_matrix(*out), onnx_moe::matrix_part(*part), {weights, errors}, hessian,
                              gradients);
  });
}
