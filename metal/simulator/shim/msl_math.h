// msl_math.h - metal_math, metal_integer, metal_common, metal_geometric, metal_relational.
#ifndef MSL_MATH_H
#define MSL_MATH_H
#include "msl_core.h"
namespace mslns {
namespace metal {

// ----------------------------------------------------------- numeric_limits --
template <class T>
struct numeric_limits {
  static constexpr bool is_specialized = false;
};
template <class T>
struct msl_int_limits {
  static constexpr bool is_specialized = true, is_integer = true, is_exact = true, has_infinity = false,
                        is_signed = T(-1) < T(0);
  static constexpr int digits = int(sizeof(T) * 8) - (T(-1) < T(0) ? 1 : 0);
  MSL_V static constexpr T max() { return T(-1) < T(0) ? T((((unsigned long)1 << (sizeof(T) * 8 - 1)) - 1)) : T(-1); }
  MSL_V static constexpr T min() { return T(-1) < T(0) ? T(-max() - 1) : T(0); }
  MSL_V static constexpr T lowest() { return min(); }
  MSL_V static constexpr T infinity() { return T(0); }
};
#define MSL_X(T) \
  template <>    \
  struct numeric_limits<T> : msl_int_limits<T> {};
MSL_X(char)
MSL_X(signed char)
MSL_X(uchar) MSL_X(short) MSL_X(ushort) MSL_X(int) MSL_X(uint) MSL_X(long) MSL_X(ulong)
#undef MSL_X
    template <>
    struct numeric_limits<bool> {
  static constexpr bool is_specialized = true, is_integer = true, has_infinity = false, is_signed = false;
  static constexpr int digits = 1;
  MSL_V static constexpr bool max() { return true; }
  MSL_V static constexpr bool min() { return false; }
  MSL_V static constexpr bool lowest() { return false; }
};
#define MSL_X(T, dig, mx, mn, eps)                                                                              \
  template <>                                                                                                   \
  struct numeric_limits<T> {                                                                                    \
    static constexpr bool is_specialized = true, is_integer = false, has_infinity = true, has_quiet_NaN = true, \
                          is_signed = true;                                                                     \
    static constexpr int digits = dig;                                                                          \
    MSL_V static constexpr T max() { return T(mx); }                                                            \
    MSL_V static constexpr T min() { return T(mn); }                                                            \
    MSL_V static constexpr T lowest() { return T(-(mx)); }                                                      \
    MSL_V static constexpr T epsilon() { return T(eps); }                                                       \
    MSL_V static constexpr T infinity() { return T(msl_inf()); }                                                \
    MSL_V static constexpr T quiet_NaN() { return T(msl_nan()); }                                               \
  };
MSL_X(float, 24, 0x1.fffffep127f, 0x1p-126f, 0x1p-23f)
MSL_X(half, 11, 65504.0f, 0x1p-14f, 0x1p-10f)
MSL_X(bfloat, 8, 0x1.fep127f, 0x1p-126f, 0x1p-7f)
#undef MSL_X

// ------------------------------------------------------------------ lifting --
// A function of scalars applied component-wise. The component type is that of
// the first vector argument, otherwise the widest scalar one.
template <class A, class B>
struct msl_join {
  typedef decltype(A() + B()) type;
};
template <class A>
struct msl_join<A, A> {
  typedef A type;
};
template <class... A>
struct msl_elem;
template <class A>
struct msl_elem<A> {
  typedef vt_E<A> type;
  static constexpr int n = vt<A>::n;
};
template <class A, class B, class... R>
struct msl_elem<A, B, R...> {
  typedef msl_elem<B, R...> rest;
  static constexpr int n = vt<A>::n ? vt<A>::n : rest::n;
  typedef typename conditional_t<(vt<A>::n != 0) || (rest::n != 0),
                                 conditional<(vt<A>::n != 0), vt_E<A>, typename rest::type>,
                                 msl_join<vt_E<A>, typename rest::type>>::type type;
};
template <class E>
struct msl_fp {
  typedef float type;
};  // float functions: half stays half, the rest is float
template <>
struct msl_fp<half> {
  typedef half type;
};
template <class R, int n>
struct msl_shape {
  typedef vec<R, n> type;
};
template <class R>
struct msl_shape<R, 0> {
  typedef R type;
};

template <class E, class F, class... A>
MSL_V auto msl_map(F f, A... a) {
  constexpr int n = msl_elem<A...>::n;
  typedef decltype(f(((void)sizeof(A), E())...)) R;
  if constexpr (n == 0) {
    return f((E)a...);
  } else {
    vec<R, n> r(R(0));
    for (int i = 0; i < n; i++) r[i] = f((E)msl_at(a, i)...);
    return r;
  }
}
#define MSL_FLT1(name, expr) /* float -> float, also through half and vectors */  \
  struct name##_fn {                                                              \
    MSL_V float operator()(float x) const { return expr; }                        \
    MSL_V half operator()(half x) const { return half((*this)((float)x)); }       \
  };                                                                              \
  template <class A, class E = typename msl_fp<typename msl_elem<A>::type>::type> \
  MSL_V auto name(A a) {                                                          \
    return msl_map<E>(name##_fn(), a);                                            \
  }
#define MSL_FLT2(name, expr)                                                                  \
  struct name##_fn {                                                                          \
    MSL_V float operator()(float x, float y) const { return expr; }                           \
    MSL_V half operator()(half x, half y) const { return half((*this)((float)x, (float)y)); } \
  };                                                                                          \
  template <class A, class B, class E = typename msl_fp<typename msl_elem<A, B>::type>::type> \
  MSL_V auto name(A a, B b) {                                                                 \
    return msl_map<E>(name##_fn(), a, b);                                                     \
  }
#define MSL_FLT3(name, expr)                                                                                    \
  struct name##_fn {                                                                                            \
    MSL_V float operator()(float x, float y, float z) const { return expr; }                                    \
    MSL_V half operator()(half x, half y, half z) const { return half((*this)((float)x, (float)y, (float)z)); } \
  };                                                                                                            \
  template <class A, class B, class C, class E = typename msl_fp<typename msl_elem<A, B, C>::type>::type>       \
  MSL_V auto name(A a, B b, C c) {                                                                              \
    return msl_map<E>(name##_fn(), a, b, c);                                                                    \
  }
#define MSL_PRED1(name, expr)                             \
  struct name##_fn {                                      \
    MSL_V bool operator()(float x) const { return expr; } \
  };                                                      \
  template <class A>                                      \
  MSL_V auto name(A a) {                                  \
    return msl_map<float>(name##_fn(), a);                \
  }

// Any arithmetic type, computed in that type.
#define MSL_ANY1(name, expr)                                    \
  struct name##_fn {                                            \
    template <class T>                                          \
    MSL_V T operator()(T x) const {                             \
      return expr;                                              \
    }                                                           \
  };                                                            \
  template <class A>                                            \
  MSL_V auto name(A a) {                                        \
    return msl_map<typename msl_elem<A>::type>(name##_fn(), a); \
  }
#define MSL_ANY2(name, expr)                                          \
  struct name##_fn {                                                  \
    template <class T>                                                \
    MSL_V T operator()(T x, T y) const {                              \
      return expr;                                                    \
    }                                                                 \
  };                                                                  \
  template <class A, class B>                                         \
  MSL_V auto name(A a, B b) {                                         \
    return msl_map<typename msl_elem<A, B>::type>(name##_fn(), a, b); \
  }
#define MSL_ANY3(name, expr)                                                \
  struct name##_fn {                                                        \
    template <class T>                                                      \
    MSL_V T operator()(T x, T y, T z) const {                               \
      return expr;                                                          \
    }                                                                       \
  };                                                                        \
  template <class A, class B, class C>                                      \
  MSL_V auto name(A a, B b, C c) {                                          \
    return msl_map<typename msl_elem<A, B, C>::type>(name##_fn(), a, b, c); \
  }

// C math entry points. Builtins keep libc's declarations out of this program.
#if defined(MSL_CUDA)
#define MSL_M(f) ::f
#else
#define MSL_M(f) __builtin_##f
#endif
#if defined(MSL_CHECK)  // no library: only the types matter
#define MSL_M1(f, x) (x)
#define MSL_M2(f, x, y) (x)
#else
#define MSL_M1(f, x) MSL_M(f)(x)
#define MSL_M2(f, x, y) MSL_M(f)(x, y)
#endif

MSL_FLT1(exp, MSL_M1(expf, x))
MSL_FLT1(exp2, MSL_M1(exp2f, x))
MSL_FLT1(exp10, MSL_M2(powf, 10.0f, x)) MSL_FLT1(log, MSL_M1(logf, x)) MSL_FLT1(log2, MSL_M1(log2f, x))
    MSL_FLT1(log10, MSL_M1(log10f, x)) MSL_FLT1(sin, MSL_M1(sinf, x)) MSL_FLT1(cos, MSL_M1(cosf, x))
        MSL_FLT1(tan, MSL_M1(tanf, x)) MSL_FLT1(asin, MSL_M1(asinf, x)) MSL_FLT1(acos, MSL_M1(acosf, x))
            MSL_FLT1(atan, MSL_M1(atanf, x)) MSL_FLT1(sinh, MSL_M1(sinhf, x)) MSL_FLT1(cosh, MSL_M1(coshf, x)) MSL_FLT1(
                tanh, MSL_M1(tanhf, x)) MSL_FLT1(asinh, MSL_M1(asinhf, x)) MSL_FLT1(acosh, MSL_M1(acoshf, x))
                MSL_FLT1(atanh, MSL_M1(atanhf, x)) MSL_FLT1(sinpi, MSL_M1(sinf, x * 3.14159265358979f)) MSL_FLT1(
                    cospi, MSL_M1(cosf, x * 3.14159265358979f)) MSL_FLT1(tanpi, MSL_M1(tanf, x * 3.14159265358979f))
                    MSL_FLT1(sqrt, MSL_M1(sqrtf, x)) MSL_FLT1(rsqrt, 1.0f / MSL_M1(sqrtf, x)) MSL_FLT1(
                        fabs, MSL_M1(fabsf,
                                     x)) MSL_FLT1(floor,
                                                  MSL_M1(floorf, x)) MSL_FLT1(ceil, MSL_M1(ceilf, x))
                        MSL_FLT1(trunc, MSL_M1(truncf, x)) MSL_FLT1(round, MSL_M1(roundf, x)) MSL_FLT1(
                            rint, MSL_M1(rintf, x)) MSL_FLT1(saturate, x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f)
                            MSL_FLT1(sign, x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : (x == 0.0f ? x : 0.0f))) MSL_FLT1(
                                fract,
                                (x - MSL_M1(floorf, x)) < 0x1.fffffep-1f
                                    ? x - MSL_M1(floorf, x)
                                    : 0x1.fffffep-1f) MSL_FLT1(degrees, x * 57.2957795130823f)
                                MSL_FLT1(radians, x * 0.0174532925199433f) MSL_FLT2(pow, MSL_M2(powf, x, y))
                                    MSL_FLT2(powr, MSL_M2(powf, x, y)) MSL_FLT2(atan2, MSL_M2(atan2f, x, y)) MSL_FLT2(
                                        fmod, MSL_M2(fmodf, x, y)) MSL_FLT2(copysign, MSL_M2(copysignf, x, y))
                                        MSL_FLT2(nextafter, MSL_M2(nextafterf, x, y)) MSL_FLT2(
                                            fmin, MSL_M2(fminf, x, y)) MSL_FLT2(fmax, MSL_M2(fmaxf, x, y))
                                            MSL_FLT2(fdim, x > y ? x - y : 0.0f) MSL_FLT2(step, y < x ? 0.0f : 1.0f)
                                                MSL_FLT2(divide, x / y)
#if defined(MSL_CHECK)
                                                    MSL_FLT3(fma, x* y + z)
#else
                                                    MSL_FLT3(fma, MSL_M(fmaf)(x, y, z))
#endif
                                                        MSL_FLT3(mix, x + (y - x) * z) MSL_FLT3(
                                                            smoothstep,
                                                            (saturate((z - x) / (y - x)) * saturate((z - x) / (y - x)) *
                                                             (3.0f - 2.0f * saturate((z - x) / (y - x)))))
                                                            MSL_FLT3(fmin3, fmin(x, fmin(y, z)))
                                                                MSL_FLT3(fmax3, fmax(x, fmax(y, z))) MSL_FLT3(
                                                                    fmedian3,
                                                                    fmax(fmin(x, y),
                                                                         fmin(fmax(x, y), z))) MSL_PRED1(isnan, x != x)
                                                                    MSL_PRED1(isinf, MSL_M1(fabsf, x) == msl_inf())
                                                                        MSL_PRED1(isfinite,
                                                                                  MSL_M1(fabsf, x) < msl_inf())
                                                                            MSL_PRED1(isnormal,
                                                                                      MSL_M1(fabsf, x) < msl_inf() &&
                                                                                          MSL_M1(fabsf, x) >= 0x1p-126f)
                                                                                MSL_PRED1(signbit,
                                                                                          (msl_bits(x) >> 31) != 0u)

    // max/min: IEEE maxNum/minNum for floats (a NaN argument is ignored).
    MSL_V float msl_min(float a, float b) {
  return MSL_M2(fminf, a, b);
}
MSL_V float msl_max(float a, float b) { return MSL_M2(fmaxf, a, b); }
MSL_V half msl_min(half a, half b) { return half(msl_min((float)a, (float)b)); }
MSL_V half msl_max(half a, half b) { return half(msl_max((float)a, (float)b)); }
MSL_V bfloat msl_min(bfloat a, bfloat b) { return bfloat(msl_min((float)a, (float)b)); }
MSL_V bfloat msl_max(bfloat a, bfloat b) { return bfloat(msl_max((float)a, (float)b)); }
template <class T>
MSL_V enable_if_t<is_integral<T>::value, T> msl_min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
MSL_V enable_if_t<is_integral<T>::value, T> msl_max(T a, T b) {
  return a < b ? b : a;
}
MSL_V float msl_abs(float a) { return MSL_M1(fabsf, a); }
MSL_V half msl_abs(half a) { return half(msl_abs((float)a)); }
MSL_V bfloat msl_abs(bfloat a) { return bfloat(msl_abs((float)a)); }
template <class T>
MSL_V enable_if_t<is_integral<T>::value, T> msl_abs(T a) {
  return a < T(0) ? T(-a) : a;
}
MSL_ANY1(abs, msl_abs(x))
MSL_ANY2(min, msl_min(x, y))
MSL_ANY2(max, msl_max(x, y))
MSL_ANY3(min3, msl_min(x, msl_min(y, z)))
MSL_ANY3(max3, msl_max(x, msl_max(y, z)))
MSL_ANY3(median3, msl_max(msl_min(x, y), msl_min(msl_max(x, y), z)))
MSL_ANY3(clamp, msl_min(msl_max(x, y), z))

// ----------------------------------------------------------------- integers --
template <class T>
MSL_V constexpr int msl_width() {
  return int(sizeof(T) * 8);
}
template <class T>
MSL_V T msl_clz(T x) {
  for (int i = 0; i < msl_width<T>(); i++)
    if ((make_unsigned_t<T>(x) >> (msl_width<T>() - 1 - i)) & 1) return T(i);
  return T(msl_width<T>());
}
template <class T>
MSL_V T msl_ctz(T x) {
  for (int i = 0; i < msl_width<T>(); i++)
    if ((make_unsigned_t<T>(x) >> i) & 1) return T(i);
  return T(msl_width<T>());
}
template <class T>
MSL_V T msl_pop(T x) {
  int n = 0;
  for (int i = 0; i < msl_width<T>(); i++) n += int((make_unsigned_t<T>(x) >> i) & 1);
  return T(n);
}
template <class T>
MSL_V T msl_rev(T x) {
  make_unsigned_t<T> r = 0;
  for (int i = 0; i < msl_width<T>(); i++) r = make_unsigned_t<T>((r << 1) | ((make_unsigned_t<T>(x) >> i) & 1));
  return T(r);
}
template <class T>
MSL_V T msl_rot(T x, T y) {
  typedef make_unsigned_t<T> U;
  int n = int(y) & (msl_width<T>() - 1);
  return n ? T((U(x) << n) | (U(x) >> (msl_width<T>() - n))) : x;
}
template <class T>
MSL_V T msl_addsat(T a, T b) {
  T r = T(make_unsigned_t<T>(a) + make_unsigned_t<T>(b));
  if constexpr (T(-1) < T(0)) {
    if (((a ^ r) & (b ^ r)) < 0) return a < 0 ? numeric_limits<T>::min() : numeric_limits<T>::max();
    return r;
  } else
    return r < a ? numeric_limits<T>::max() : r;
}
template <class T>
MSL_V T msl_subsat(T a, T b) {
  T r = T(make_unsigned_t<T>(a) - make_unsigned_t<T>(b));
  if constexpr (T(-1) < T(0)) {
    if (((a ^ b) & (a ^ r)) < 0) return a < 0 ? numeric_limits<T>::min() : numeric_limits<T>::max();
    return r;
  } else
    return a < b ? T(0) : r;
}
template <class T>
MSL_V T msl_mulhi(T a, T b) {
  if constexpr (sizeof(T) < 8) {
    typedef conditional_t<(T(-1) < T(0)), long, ulong> W;
    return T((W(a) * W(b)) >> (8 * sizeof(T)));
  } else {
    ulong al = ulong(a) & 0xFFFFFFFFul, ah = ulong(a) >> 32, bl = ulong(b) & 0xFFFFFFFFul, bh = ulong(b) >> 32;
    ulong m = ah * bl + ((al * bl) >> 32), m2 = al * bh + (m & 0xFFFFFFFFul), r = ah * bh + (m >> 32) + (m2 >> 32);
    if constexpr (T(-1) < T(0)) {
      if (a < 0) r -= ulong(b);
      if (b < 0) r -= ulong(a);
    }
    return T(r);
  }
}
MSL_ANY1(clz, msl_clz(x))
MSL_ANY1(ctz, msl_ctz(x))
MSL_ANY1(popcount, msl_pop(x)) MSL_ANY1(reverse_bits, msl_rev(x)) MSL_ANY2(rotate, msl_rot(x, y))
    MSL_ANY2(addsat, msl_addsat(x, y)) MSL_ANY2(subsat, msl_subsat(x, y)) MSL_ANY2(mulhi, msl_mulhi(x, y))
        MSL_ANY2(absdiff, x > y ? T(x - y) : T(y - x)) MSL_ANY2(hadd, T((x & y) + ((x ^ y) >> 1)))
            MSL_ANY2(rhadd, T((x | y) - ((x ^ y) >> 1))) MSL_ANY3(mad24, T(x* y + z)) MSL_ANY2(mul24, T(x* y))
                MSL_ANY3(madhi, T(msl_mulhi(x, y) + z)) MSL_ANY3(madsat, msl_addsat(T(x* y), z)) template <class T>
                MSL_V T extract_bits(T x, uint off, uint bits) {
  if (bits == 0) return T(0);
  return T(T(make_unsigned_t<T>(x) << (msl_width<T>() - off - bits)) >> (msl_width<T>() - bits));
}
template <class T>
MSL_V T insert_bits(T base, T ins, uint off, uint bits) {
  typedef make_unsigned_t<T> U;
  U m = bits >= uint(msl_width<T>()) ? U(-1) : U((U(1) << bits) - 1);
  return T((U(base) & ~U(m << off)) | (U(U(ins) & m) << off));
}

// --------------------------------------------------------------- relational --
struct select_fn {
  template <class T>
  MSL_V T operator()(T a, T b, bool c) const {
    return c ? b : a;
  }
};
template <class A, class B, class C>
MSL_V auto select(A a, B b, C c) {
  typedef typename msl_elem<A, B>::type E;
  constexpr int n = vt<A>::n ? vt<A>::n : (vt<B>::n ? vt<B>::n : vt<C>::n);
  if constexpr (n == 0) {
    return (bool)c ? (E)b : (E)a;
  } else {
    vec<E, n> r(E(0));
    for (int i = 0; i < n; i++) r[i] = (bool)msl_at(c, i) ? (E)msl_at(b, i) : (E)msl_at(a, i);
    return r;
  }
}
template <class A>
MSL_V bool any(A a) {
  bool r = false;
  for (int i = 0; i < (is_vec<A> ? vt<A>::n : 1); i++) r = r || (bool)msl_at(a, i);
  return r;
}
template <class A>
MSL_V bool all(A a) {
  bool r = true;
  for (int i = 0; i < (is_vec<A> ? vt<A>::n : 1); i++) r = r && (bool)msl_at(a, i);
  return r;
}

// ---------------------------------------------------------------- geometric --
template <class A, class B>
MSL_V auto dot(A a, B b) {
  typedef typename msl_elem<A, B>::type E;
  E s = (E)msl_at(a, 0) * (E)msl_at(b, 0);
  for (int i = 1; i < msl_elem<A, B>::n; i++) s = E(s + (E)msl_at(a, i) * (E)msl_at(b, i));
  return s;
}
template <class A>
MSL_V auto length_squared(A a) {
  return dot(a, a);
}
template <class A>
MSL_V auto length(A a) {
  return sqrt(dot(a, a));
}
template <class A, class B>
MSL_V auto distance(A a, B b) {
  return length(a - b);
}
template <class A>
MSL_V auto normalize(A a) {
  return a * rsqrt(dot(a, a));
}
template <class A, class B>
MSL_V auto cross(A a, B b) {
  typedef vt_E<A> E;
  return vec<E, 3>(a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]);
}

// -------------------------------------------- functions with a second result --
#if defined(MSL_CHECK)
#define MSL_OUT(stmt)
#else
#define MSL_OUT(stmt) stmt
#endif
MSL_V float sincos(float x, MSL_THR float& c) {
  c = MSL_M1(cosf, x);
  return MSL_M1(sinf, x);
}
MSL_V half sincos(half x, MSL_THR half& c) {
  c = half(MSL_M1(cosf, (float)x));
  return half(MSL_M1(sinf, (float)x));
}
MSL_V float modf(float x, MSL_THR float& ip) {
  ip = MSL_M1(truncf, x);
  return MSL_M2(copysignf, x - ip, x);
}
MSL_V float frexp(float x, MSL_THR int& e) {
  if (!(MSL_M1(fabsf, x) < msl_inf()) || x == 0.0f) {
    e = 0;
    return x;
  }
  float s = MSL_M1(fabsf, x) < 0x1p-126f ? 0x1p64f : 1.0f;
  uint u = msl_bits(x * s);
  e = int((u >> 23) & 0xFFu) - 126 - (s > 1.0f ? 64 : 0);
  return msl_float((u & 0x807FFFFFu) | 0x3F000000u);
}
MSL_V float ldexp(float x, int k) {
  for (; k > 126; k -= 126) x *= 0x1p126f;
  for (; k < -126; k += 126) x *= 0x1p-126f;
  return x * msl_float(uint(k + 127) << 23);
}
MSL_V int ilogb(float x) {
  int e = 0;
  frexp(x, e);
  return e - 1;
}

// ------------------------------------------------------------------ packing --
MSL_V float4 unpack_unorm4x8_to_float(uint x) {
  return float4(float(x & 255u), float((x >> 8) & 255u), float((x >> 16) & 255u), float(x >> 24)) / 255.0f;
}
MSL_V uint pack_float_to_unorm4x8(float4 v) {
  uint r = 0;
  for (int i = 0; i < 4; i++) r |= uint(MSL_M1(rintf, msl_min(msl_max(v[i], 0.0f), 1.0f) * 255.0f)) << (8 * i);
  return r;
}

// precise:: and fast:: variants: the same correctly-behaved functions. Results
// of fast:: on Apple GPUs differ in the last bits and in NaN/denormal handling.
#define MSL_SAME(f) using metal::f;
#define MSL_SAME_ALL                                                                                                  \
  MSL_SAME(exp)                                                                                                       \
  MSL_SAME(exp2)                                                                                                      \
  MSL_SAME(exp10) MSL_SAME(log) MSL_SAME(log2) MSL_SAME(log10) MSL_SAME(sin) MSL_SAME(cos) MSL_SAME(tan)              \
      MSL_SAME(asin) MSL_SAME(acos) MSL_SAME(atan) MSL_SAME(sinh) MSL_SAME(cosh) MSL_SAME(tanh) MSL_SAME(asinh)       \
          MSL_SAME(acosh) MSL_SAME(atanh) MSL_SAME(sinpi) MSL_SAME(cospi) MSL_SAME(tanpi) MSL_SAME(sqrt)              \
              MSL_SAME(rsqrt) MSL_SAME(fabs) MSL_SAME(floor) MSL_SAME(ceil) MSL_SAME(trunc) MSL_SAME(round)           \
                  MSL_SAME(rint) MSL_SAME(saturate) MSL_SAME(fract) MSL_SAME(pow) MSL_SAME(powr) MSL_SAME(atan2)      \
                      MSL_SAME(fmod) MSL_SAME(fmin) MSL_SAME(fmax) MSL_SAME(fdim) MSL_SAME(fma) MSL_SAME(mix)         \
                          MSL_SAME(divide) MSL_SAME(abs) MSL_SAME(min) MSL_SAME(max) MSL_SAME(clamp) MSL_SAME(min3)   \
                              MSL_SAME(max3) MSL_SAME(median3) MSL_SAME(fmin3) MSL_SAME(fmax3) MSL_SAME(fmedian3)     \
                                  MSL_SAME(sincos) MSL_SAME(modf) MSL_SAME(frexp) MSL_SAME(ldexp) MSL_SAME(nextafter) \
                                      MSL_SAME(normalize) MSL_SAME(length) MSL_SAME(distance) MSL_SAME(dot)           \
                                          MSL_SAME(isnan) MSL_SAME(isinf) MSL_SAME(isfinite) MSL_SAME(sign)           \
                                              MSL_SAME(step) MSL_SAME(smoothstep)
namespace precise {
MSL_SAME_ALL
}
namespace fast {
MSL_SAME_ALL
}
}  // namespace metal
}  // namespace mslns
#endif
