// Unrolling at compile time, and the attribute that keeps an instruction set's code in its own file.
#pragma once

#include <utility>

#define ONNX_MOE_INLINE __attribute__((always_inline))
#define ONNX_MOE_NOINLINE __attribute__((noinline))

// In front of a loop: no iteration reads what another one writes.
#ifdef __clang__
#define ONNX_MOE_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define ONNX_MOE_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace onnx_moe {
namespace {

template <typename Body, int... I>
ONNX_MOE_INLINE inline void unroll_sequence(Body& body, std::integer_sequence<int, I...>) {
  (body(std::integral_constant<int, I>{}), ...);
}

template <int Count, typename Body>
ONNX_MOE_INLINE inline void unroll(Body&& body) {
  unroll_sequence(body, std::make_integer_sequence<int, Count>{});
}

// Calls body(row, column), both compile-time constants.
template <int Rows, int Columns, typename Body>
ONNX_MOE_INLINE inline void unroll_matrix(Body&& body) {
  unroll<Rows>([&](auto row)
                   ONNX_MOE_INLINE { unroll<Columns>([&](auto column) ONNX_MOE_INLINE { body(row, column); }); });
}

// The same pointer, as one that the compiler knows nothing about: what was loaded through the other is loaded again
// instead of being kept in registers that sums need.
template <typename T>
ONNX_MOE_INLINE inline const T* reload(const T* pointer) {
  __asm__("" : "+r"(pointer));
  return pointer;
}

// Calls body with `count`, 1 … Most, as a compile-time constant.
template <int Most, typename Body>
ONNX_MOE_INLINE inline void with_constant(int64_t count, Body&& body) {
  unroll<Most>([&](auto index) ONNX_MOE_INLINE {
    if (count == index + 1) body(std::integral_constant<int, index + 1>{});
  });
}

// Calls body(first, count) for blocks of `rows` rows, each count a compile-time constant of at most Most: blocks of
// nearly equal size, so that none is left with one row.
template <int Most, typename Body>
ONNX_MOE_INLINE inline void for_row_blocks(int64_t rows, Body&& body) {
  const int64_t blocks = (rows + Most - 1) / Most;
  for (int64_t block = 0, first = 0; block < blocks; ++block) {
    const int64_t count = (rows - first) / (blocks - block);
    with_constant<Most>(count, [&](auto constant) ONNX_MOE_INLINE { body(first, constant); });
    first += count;
  }
}

}  // namespace
}  // namespace onnx_moe
