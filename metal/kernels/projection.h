// What the kernels of an expert projection share: which weight rows make an output column, and its epilogue.
#pragma once

#include "arguments.h"
#include "fp4.h"

constant uint FUNCTION [[function_constant(2)]];  // the activation: none, silu, gelu, gelu_tanh, relu, relu2
constant uint GATED [[function_constant(3)]];
constant uint INTERLEAVED [[function_constant(4)]];
constant uint HAS_GLOBAL_SCALE [[function_constant(5)]];
constant uint BIAS [[function_constant(6)]];          // 0 none, 1 float, 2 ELEMENT
constant uint OUTPUT_FLOAT [[function_constant(7)]];  // what the combine sums; ELEMENT otherwise

// The weight row of an output column; half_index 1 is the up projection's.
inline uint weight_row(constant ExpertGemmArguments& arguments, uint column, uint half_index) {
  if (!GATED) return column;
  return INTERLEAVED ? 2 * column + half_index : half_index * arguments.output_columns + column;
}

// Abramowitz and Stegun 7.1.26 is too coarse for 1e-6: the Maclaurin series below 2.5, a continued fraction above.
inline float error_function(float x) {
  const float magnitude = metal::abs(x);
  if (magnitude > 4.0f) return x > 0.0f ? 1.0f : -1.0f;
  const float square = x * x;
  if (magnitude < 2.5f) {
    float term = x;
    float sum = x;
    for (uint n = 1; n < 40; ++n) {
      term *= -square / float(n);
      sum += term / float(2 * n + 1);
    }
    return sum * 1.1283791670955126f;
  }
  float fraction = magnitude;
  for (uint n = 24; n > 0; --n) fraction = magnitude + 0.5f * float(n) / fraction;
  const float tail = metal::exp(-square) * 0.5641895835477563f / fraction;
  return x > 0.0f ? 1.0f - tail : tail - 1.0f;
}

inline float activate(float g, float alpha) {
  switch (FUNCTION) {
    case 1: return g / (1.0f + metal::exp(-alpha * g));
    case 2: return 0.5f * g * (1.0f + error_function(g * 0.7071067811865476f));
    case 3: {
      // 0.5 (1 + tanh(z)) is σ(2z), which neither overflows nor cancels.
      const float z = 1.5957691216057308f * (g + 0.044715f * g * g * g);
      return g / (1.0f + metal::exp(-z));
    }
    case 4: return metal::isnan(g) ? g : metal::max(g, 0.0f);
    case 5: return metal::isnan(g) ? g : metal::max(g, 0.0f) * metal::max(g, 0.0f);
    default: return g;
  }
}

// Keeps NaN, as the operator's definition does.
inline float clamp_keeping_nan(float value, float low, float high) {
  return metal::isnan(value) ? value : metal::clamp(value, low, high);
}

inline float scaled_and_biased(constant ExpertGemmArguments& arguments, float product, uint expert, uint row,
                               uint half_index, device const float* global_scale, device const uchar* bias) {
  float value = product;
  if (HAS_GLOBAL_SCALE) {
    const uint index = arguments.global_scales == 2 ? 2 * expert + half_index : expert;
    value *= global_scale[index];
  }
  const ulong element = ulong(expert) * arguments.rows + row;
  if (BIAS == 1) value += ((device const float*)bias)[element];
  if (BIAS == 2) value += float(((device const ELEMENT*)bias)[element]);
  return value;
}

inline float output_value(constant ExpertGemmArguments& arguments, float gate, float up) {
  if (!GATED) return activate(gate, arguments.alpha);
  if (arguments.limit > 0.0f) {
    gate = metal::isnan(gate) ? gate : metal::min(gate, arguments.limit);
    up = clamp_keeping_nan(up, -arguments.limit, arguments.limit);
  }
  return activate(gate, arguments.alpha) * (up + arguments.beta);
}

inline void store_output(device uchar* y, ulong index, float value) {
  if (OUTPUT_FLOAT) {
    ((device float*)y)[index] = value;
  } else {
    ((device ELEMENT*)y)[index] = ELEMENT(value);
  }
}

inline ulong x_row(constant ExpertGemmArguments& arguments, uint assignment) {
  return arguments.x_per_slot != 0 ? assignment : assignment / arguments.slots;
}
