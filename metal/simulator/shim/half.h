// half and bfloat: stored in 16 bits, rounded to nearest even after every operation. For the checker half is OpenCL's.
#pragma once

#include "scalars.h"

namespace mslns {

MSL_V constexpr uint msl_bits(float value) { return __builtin_bit_cast(uint, value); }
MSL_V constexpr float msl_float(uint bits) { return __builtin_bit_cast(float, bits); }
MSL_V constexpr float msl_infinity() { return msl_float(0x7F800000u); }
MSL_V constexpr float msl_nan() { return msl_float(0x7FC00000u); }

#if defined(MSL_CPU)
// Clang before 15 has _Float16 only for processors that compute in it, and __fp16, which is but stored, for all.
#if defined(__clang__) && __clang_major__ < 15 && !defined(__AVX512FP16__)
using msl_stored_half = __fp16;
#else
using msl_stored_half = _Float16;
#endif

struct half {
  msl_stored_half value;

  half() = default;
  constexpr half(float number) : value((msl_stored_half)number) {}
  template <class I, class = msl_enable_if_t<msl_is_integer<I>>>
  constexpr half(I number) : value((msl_stored_half)(float)number) {}
  constexpr operator float() const { return (float)value; }
};
#elif defined(MSL_CUDA)
struct half {
  ushort value;

  half() = default;
  MSL_F half(float number) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(value) : "f"(number)); }
  template <class I, class = msl_enable_if_t<msl_is_integer<I>>>
  MSL_F half(I number) : half((float)number) {}
  MSL_F operator float() const {
    float number;
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(value));
    return number;
  }
};
#endif

struct bfloat {
  ushort value;

  bfloat() = default;
  MSL_V explicit bfloat(float number) : value(rounded(number)) {}  // MSL converts no float to bfloat by itself
  template <class I, class = msl_enable_if_t<msl_is_integer<I>>>
  MSL_V bfloat(I number) : value(rounded((float)number)) {}
  MSL_V operator float() const { return msl_float((uint)value << 16); }

 private:
  MSL_V static ushort rounded(float number) {
    const uint bits = msl_bits(number);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (ushort)((bits >> 16) | 0x40u);
    return (ushort)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
  }
};

#define MSL_ARITHMETIC(T, op)                                         \
  MSL_V T operator op(T a, T b) { return T((float)a op(float) b); }   \
  MSL_V float operator op(T a, float b) { return (float)a op b; }     \
  MSL_V float operator op(float a, T b) { return a op(float) b; }     \
  template <class I>                                                  \
  MSL_V msl_enable_if_t<msl_is_integer<I>, T> operator op(T a, I b) { \
    return a op T(b);                                                 \
  }                                                                   \
  template <class I>                                                  \
  MSL_V msl_enable_if_t<msl_is_integer<I>, T> operator op(I a, T b) { \
    return T(a) op b;                                                 \
  }                                                                   \
  template <class B>                                                  \
  MSL_V T& operator op## = (T & a, B b) {                             \
    return a = T(a op b);                                             \
  }                                                                   \
  static_assert(true, "")
#define MSL_COMPARISON(T, op)                                       \
  MSL_V bool operator op(T a, T b) { return (float)a op(float) b; } \
  MSL_V bool operator op(T a, float b) { return (float)a op b; }    \
  MSL_V bool operator op(float a, T b) { return a op(float) b; }    \
  static_assert(true, "")
#define MSL_SMALL_FLOAT(T)                        \
  MSL_ARITHMETIC(T, +);                           \
  MSL_ARITHMETIC(T, -);                           \
  MSL_ARITHMETIC(T, *);                           \
  MSL_ARITHMETIC(T, /);                           \
  MSL_COMPARISON(T, ==);                          \
  MSL_COMPARISON(T, !=);                          \
  MSL_COMPARISON(T, <);                           \
  MSL_COMPARISON(T, >);                           \
  MSL_COMPARISON(T, <=);                          \
  MSL_COMPARISON(T, >=);                          \
  MSL_V T operator-(T a) { return T(-(float)a); } \
  static_assert(true, "")
#if !defined(MSL_CHECK)
MSL_SMALL_FLOAT(half);
#endif
MSL_SMALL_FLOAT(bfloat);
#undef MSL_SMALL_FLOAT
#undef MSL_COMPARISON
#undef MSL_ARITHMETIC

template <class T>
constexpr bool msl_is_float = msl_is_same<T, float> || msl_is_same<T, half> || msl_is_same<T, bfloat>;
template <class T>
constexpr bool msl_is_number = msl_is_integer<T> || msl_is_float<T>;

}  // namespace mslns
