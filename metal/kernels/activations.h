// Activations and router weights, 16 bytes a load: the widest there is.
#pragma once

#include <metal_stdlib>

// Elements of a step: 16 or 32 bytes.
constant constexpr uint EIGHT = 8;

// The values of 16 bytes, by the pointer that they were loaded from.
inline void unpack(uint4 words, device const float*, thread float* values) {
  for (uint j = 0; j < 4; ++j) values[j] = as_type<float>(words[j]);
}

template <typename Pair>
inline void unpack_pairs(uint4 words, thread float* values) {
  for (uint j = 0; j < 4; ++j) {
    const Pair pair = as_type<Pair>(words[j]);
    values[2 * j] = float(pair.x);
    values[2 * j + 1] = float(pair.y);
  }
}
inline void unpack(uint4 words, device const half*, thread float* values) { unpack_pairs<half2>(words, values); }
inline void unpack(uint4 words, device const bfloat*, thread float* values) { unpack_pairs<bfloat2>(words, values); }

// `count` values from `x` on, which is aligned to 16 bytes; `count` is a multiple of eight.
template <typename Element>
inline void load_values(device const Element* x, uint count, thread float* values) {
  const uint per_load = 16 / sizeof(Element);
  for (uint i = 0; i < count; i += per_load) unpack(*(device const uint4*)(x + i), x, values + i);
}
