// Activations, sums and conversions: plain loops that the compiler vectorises.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/kernel.h"
#include "kernels/vector/inline.h"

namespace onnx_moe {
namespace {

// e^x to 2 units in the last place on [-87, 88], clamped outside (NaN stays): x = n·ln 2 + r, Taylor in r.
ONNX_MOE_INLINE inline float exp_clamped(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer, in the low bits
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * float_from_bits((bits_from_float(shifted) << 23) + 0x3F800000u);
}

template <Function F>
ONNX_MOE_INLINE inline float apply(float alpha, float g) {
  if constexpr (F == Function::kSilu) return g / (1.0f + exp_clamped(-alpha * g));
  if constexpr (F == Function::kGelu) return 0.5f * g * (1.0f + std::erf(g * 0.70710678f));
  if constexpr (F == Function::kGeluTanh) {  // ½(1 + tanh u) = σ(2u)
    return g / (1.0f + exp_clamped(-1.59576912f * (g + 0.044715f * g * g * g)));
  }
  if constexpr (F == Function::kRelu) return g < 0.0f ? 0.0f : g;
  if constexpr (F == Function::kRelu2) return g < 0.0f ? 0.0f : g * g;
  return g;
}

template <bool Biased>
ONNX_MOE_INLINE inline float scaled(float value, float scale, const float* bias, int64_t i) {
  return Biased ? value * scale + bias[i] : value * scale;
}

template <Function F, bool Gated, bool Biased>
void finish_rows(const Epilogue& epilogue, int64_t rows, float* const* y) {
  const Epilogue e = epilogue;
  const float alpha = e.activation->alpha;
  const float beta = e.activation->beta;
  const float limit = e.activation->limit > 0.0f ? e.activation->limit : HUGE_VALF;
  for (int64_t r = 0; r < rows; ++r) {
    const float* gates = e.products.data + r * e.products.stride;
    const float* ups = gates + e.products.band_stride;
    float* target = y[r];
    // `y` may be the place of the gates: element i is read before it is written.
    ONNX_MOE_INDEPENDENT
    for (int64_t i = 0; i < e.columns; ++i) {
      float gate = scaled<Biased>(gates[i], e.gate_scale, e.gate_bias, i);
      if constexpr (Gated) {
        float up = scaled<Biased>(ups[i], e.up_scale, e.up_bias, i);
        gate = gate > limit ? limit : gate;
        up = up > limit ? limit : up;
        up = up < -limit ? -limit : up;
        target[i] = apply<F>(alpha, gate) * (up + beta);
      } else {
        target[i] = apply<F>(alpha, gate);
      }
    }
  }
}

template <Function F>
void finish_function(const Epilogue& epilogue, int64_t rows, float* const* y) {
  const bool biased = epilogue.gate_bias != nullptr;
  if (epilogue.activation->gated) {
    return biased ? finish_rows<F, true, true>(epilogue, rows, y) : finish_rows<F, true, false>(epilogue, rows, y);
  }
  return biased ? finish_rows<F, false, true>(epilogue, rows, y) : finish_rows<F, false, false>(epilogue, rows, y);
}

inline void finish(const Epilogue& epilogue, int64_t rows, float* const* y) {
  switch (epilogue.activation->function) {
    case Function::kNone:
      return finish_function<Function::kNone>(epilogue, rows, y);
    case Function::kSilu:
      return finish_function<Function::kSilu>(epilogue, rows, y);
    case Function::kGelu:
      return finish_function<Function::kGelu>(epilogue, rows, y);
    case Function::kGeluTanh:
      return finish_function<Function::kGeluTanh>(epilogue, rows, y);
    case Function::kRelu:
      return finish_function<Function::kRelu>(epilogue, rows, y);
    case Function::kRelu2:
      return finish_function<Function::kRelu2>(epilogue, rows, y);
  }
}

inline void combine(const float* weights, const float* rows, int64_t slots, int64_t columns, float* y) {
  for (int64_t i = 0; i < columns; ++i) y[i] = weights[0] * rows[i];
  for (int64_t slot = 1; slot < slots; ++slot) {
    rows += columns;
    for (int64_t i = 0; i < columns; ++i) y[i] += weights[slot] * rows[i];
  }
}

template <typename Isa>
void widen(ElementType type, const void* source, int64_t count, float* target) {
  if (type == ElementType::kFloat) {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const auto* bits = static_cast<const uint16_t*>(source);
  int64_t i = 0;
  if (type == ElementType::kFloat16) {
    for (; i + Isa::kLanes <= count; i += Isa::kLanes) Isa::store(target + i, Isa::load_half(bits + i));
    for (; i < count; ++i) target[i] = float_from_float16(bits[i]);
  } else {
    for (; i < count; ++i) target[i] = float_from_bfloat16(bits[i]);
  }
}

template <typename Isa>
void narrow(ElementType type, const float* source, int64_t count, void* target) {
  if (type == ElementType::kFloat) {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  auto* bits = static_cast<uint16_t*>(target);
  int64_t i = 0;
  if (type == ElementType::kFloat16) {
    for (; i + Isa::kLanes <= count; i += Isa::kLanes) Isa::store_half(bits + i, Isa::load(source + i));
    for (; i < count; ++i) bits[i] = float16_from_float(source[i]);
  } else {
    for (; i < count; ++i) bits[i] = bfloat16_from_float(source[i]);
  }
}

}  // namespace
}  // namespace onnx_moe
