// Functions of numbers. Floats are C's; a half is computed as float and rounded.
#pragma once

#include "vector.h"

namespace mslns {
namespace metal {

#if defined(MSL_CUDA)
#define MSL_C(function, ...) ::function(__VA_ARGS__)
#elif defined(MSL_CPU)
#define MSL_C(function, ...) __builtin_##function(__VA_ARGS__)
#else  // only types matter
template <class... T>
float msl_any_float(T...);
#define MSL_C(function, ...) msl_any_float(__VA_ARGS__)
#endif

#define MSL_FUNCTION(name, value)                          \
  MSL_F float name(float x) { return value; }              \
  MSL_F half name(half x) { return half(name((float)x)); } \
  static_assert(true, "")
#define MSL_FUNCTION2(name, value)                                           \
  MSL_F float name(float x, float y) { return value; }                       \
  MSL_F half name(half x, half y) { return half(name((float)x, (float)y)); } \
  static_assert(true, "")
MSL_FUNCTION(exp, MSL_C(expf, x));
MSL_FUNCTION(exp2, MSL_C(exp2f, x));
MSL_FUNCTION(log, MSL_C(logf, x));
MSL_FUNCTION(log2, MSL_C(log2f, x));
MSL_FUNCTION(tanh, MSL_C(tanhf, x));
MSL_FUNCTION(sqrt, MSL_C(sqrtf, x));
MSL_FUNCTION(rsqrt, 1.0f / MSL_C(sqrtf, x));
MSL_FUNCTION(abs, MSL_C(fabsf, x));
MSL_FUNCTION(floor, MSL_C(floorf, x));
MSL_FUNCTION(ceil, MSL_C(ceilf, x));
MSL_FUNCTION(rint, MSL_C(rintf, x));
MSL_FUNCTION2(pow, MSL_C(powf, x, y));
// Of a number and NaN: the number.
MSL_FUNCTION2(min, MSL_C(fminf, x, y));
MSL_FUNCTION2(max, MSL_C(fmaxf, x, y));
#undef MSL_FUNCTION2
#undef MSL_FUNCTION

MSL_F float fma(float x, float y, float z) { return MSL_C(fmaf, x, y, z); }
MSL_F bfloat min(bfloat x, bfloat y) { return bfloat(min((float)x, (float)y)); }
MSL_F bfloat max(bfloat x, bfloat y) { return bfloat(max((float)x, (float)y)); }

template <class T>
MSL_F msl_enable_if_t<msl_is_integer<T>, T> min(T x, T y) {
  return y < x ? y : x;
}
template <class T>
MSL_F msl_enable_if_t<msl_is_integer<T>, T> max(T x, T y) {
  return x < y ? y : x;
}
template <class T>
MSL_F msl_enable_if_t<msl_is_integer<T>, T> abs(T x) {
  return x < T(0) ? T(-x) : x;
}
template <class T>
MSL_F T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}
template <class T>
MSL_F T select(T otherwise, T value, bool condition) {
  return condition ? value : otherwise;
}

MSL_F bool isnan(float x) { return x != x; }
MSL_F bool isinf(float x) { return x == msl_infinity() || x == -msl_infinity(); }
MSL_F bool isfinite(float x) { return x - x == 0.0f; }
#undef MSL_C

}  // namespace metal
}  // namespace mslns
