// Atomic unsigned integers in device memory, in relaxed order, which is all that MSL 3.1 has.
#pragma once

#include "scalars.h"

namespace mslns {
namespace metal {

enum memory_order { memory_order_relaxed };

// Without operators: memory that is atomic is reached by the functions below alone.
struct atomic_uint {
  uint value;
};

#if defined(MSL_CHECK)
MSL_F uint atomic_fetch_add_explicit(__global atomic_uint* object, uint operand, memory_order) {
  const uint before = object->value;
  object->value += operand;
  return before;
}
#else
MSL_F uint atomic_fetch_add_explicit(atomic_uint* object, uint operand, memory_order) {
#if defined(MSL_CUDA)
  return ::atomicAdd(&object->value, operand);
#else
  return __atomic_fetch_add(&object->value, operand, __ATOMIC_RELAXED);
#endif
}
#endif

}  // namespace metal
}  // namespace mslns
