// The weighted sum over a token's slots, in slot order and float32: a thread owns one output.
#include <metal_stdlib>

#include "arguments.h"

using namespace metal;

kernel void combine(constant CombineArguments& arguments [[buffer(0)]],
                    device const float* slots [[buffer(1)]],
                    device const float* expert_weights [[buffer(2)]],
                    device ELEMENT* y [[buffer(3)]],
                    uint2 position [[thread_position_in_grid]]) {
  if (position.x >= arguments.columns) return;
  const ulong first = ulong(position.y) * arguments.slots;
  float sum = 0.0f;
  for (uint slot = 0; slot < arguments.slots; ++slot) {
    sum = fma(expert_weights[first + slot], slots[(first + slot) * arguments.columns + position.x], sum);
  }
  y[ulong(position.y) * arguments.columns + position.x] = ELEMENT(sum);
}
