// simdgroup_matrix: 8 × 8 elements, of which a lane holds two neighbours of a row, in the layout of Apple's GPUs (which
// Apple does not document, and other projects rely on):
//   row = 4 · (lane / 16) + (lane / 2) % 4,  column = 4 · ((lane / 8) % 2) + 2 · (lane % 2)
#pragma once

#include "simdgroup.h"

namespace mslns {
namespace metal {

MSL_V uint msl_row(uint lane) { return lane / 16 * 4 + lane / 2 % 4; }
MSL_V uint msl_column(uint lane) { return lane / 8 % 2 * 4 + lane % 2 * 2; }
MSL_V uint msl_lane_of(uint row, uint column) { return row / 4 * 16 + column / 4 * 8 + row % 4 * 2 + column % 4 / 2; }

template <class T, int ROWS, int COLUMNS>
struct simdgroup_matrix {
  static_assert(ROWS == 8 && COLUMNS == 8, "simdgroup matrices are 8 x 8");
  vec<T, 2> elements;
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int ROWS, int COLUMNS>
MSL_F simdgroup_matrix<T, ROWS, COLUMNS> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, ROWS, COLUMNS> result;
  result.elements = vec<T, 2>(value, value);
  return result;
}

// Element (row, column) lies at memory[(origin.y + row) · stride + origin.x + column]; transposed, with row and column
// exchanged.
MSL_F ulong msl_element(uint row, uint column, ulong stride, ulong2 origin, bool transpose) {
  return (origin.y + (transpose ? column : row)) * stride + origin.x + (transpose ? row : column);
}
#define MSL_LOAD_AND_STORE(SPACE)                                                                                  \
  template <class T>                                                                                               \
  MSL_F void simdgroup_load(MSL_THREAD simdgroup_matrix<T, 8, 8>& matrix, const SPACE T* memory, ulong stride = 8, \
                            ulong2 origin = ulong2(0), bool transpose = false) {                                   \
    const uint row = msl_row(msl_lane()), column = msl_column(msl_lane());                                         \
    for (uint i = 0; i < 2; i++) {                                                                                 \
      matrix.elements[int(i)] = memory[msl_element(row, column + i, stride, origin, transpose)];                   \
    }                                                                                                              \
  }                                                                                                                \
  template <class T>                                                                                               \
  MSL_F void simdgroup_store(simdgroup_matrix<T, 8, 8> matrix, SPACE T* memory, ulong stride = 8,                  \
                             ulong2 origin = ulong2(0), bool transpose = false) {                                  \
    const uint row = msl_row(msl_lane()), column = msl_column(msl_lane());                                         \
    for (uint i = 0; i < 2; i++) {                                                                                 \
      memory[msl_element(row, column + i, stride, origin, transpose)] = matrix.elements[int(i)];                   \
    }                                                                                                              \
  }
MSL_EACH_SHARED(MSL_LOAD_AND_STORE)
#undef MSL_LOAD_AND_STORE

// D = A · B + C in float32 with fused multiply-adds, columns of A in order. How Apple's sum is not known.
#if defined(MSL_CPU)
struct msl_product_argument {
  float2 a, b, c, result;
};
MSL_COLLECTIVE inline void msl_multiply_all(void** lanes, unsigned active) {
  float a[8][8] = {}, b[8][8] = {}, sums[8][8] = {};
  MSL_FOR_LANES(active) {
    const msl_product_argument& own = *(msl_product_argument*)lanes[lane];
    const uint row = msl_row(uint(lane)), column = msl_column(uint(lane));
    for (uint i = 0; i < 2; i++) {
      a[row][column + i] = own.a[int(i)];
      b[row][column + i] = own.b[int(i)];
      sums[row][column + i] = own.c[int(i)];
    }
  }
  for (int row = 0; row < 8; row++) {
    for (int k = 0; k < 8; k++) {
      for (int column = 0; column < 8; column++) sums[row][column] = fma(a[row][k], b[k][column], sums[row][column]);
    }
  }
  MSL_FOR_LANES(active) {
    const uint row = msl_row(uint(lane)), column = msl_column(uint(lane));
    ((msl_product_argument*)lanes[lane])->result = float2(sums[row][column], sums[row][column + 1]);
  }
}
MSL_F float2 msl_product(float2 a, float2 b, float2 c MSL_PLACE) {
  msl_product_argument argument{a, b, c, float2(0)};
  MSL_COLLECT(msl_multiply_all, argument, "simdgroup_multiply_accumulate");
  return argument.result;
}
#elif defined(MSL_CUDA)
MSL_F float2 msl_product(float2 a, float2 b, float2 c) {
  const uint row = msl_row(msl_lane()), column = msl_column(msl_lane());
#pragma unroll
  for (uint k = 0; k < 8; k++) {
    const float left = __shfl_sync(0xFFFFFFFFu, k % 2 ? a.y : a.x, int(msl_lane_of(row, k)));
    c.x = fma(left, __shfl_sync(0xFFFFFFFFu, b.x, int(msl_lane_of(k, column))), c.x);
    c.y = fma(left, __shfl_sync(0xFFFFFFFFu, b.y, int(msl_lane_of(k, column))), c.y);
  }
  return c;
}
#else
float2 msl_product(float2, float2, float2);
#endif

template <class D, class A, class B, class C>
MSL_F void simdgroup_multiply_accumulate(MSL_THREAD simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                         simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c MSL_PLACE) {
  const float2 sums = msl_product(float2(a.elements.x, a.elements.y), float2(b.elements.x, b.elements.y),
                                  float2(c.elements.x, c.elements.y) MSL_HERE);
  d.elements = vec<D, 2>(D(sums.x), D(sums.y));
}

}  // namespace metal
}  // namespace mslns
