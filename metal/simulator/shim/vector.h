// Vectors of two to four components: their layout, arithmetic by component, and as_type. No swizzles.
#pragma once

#include "half.h"

namespace mslns {
namespace metal {

template <class T, int N>
struct vec;

// On fibers, copies are loads of components, which can be counted; a compiler's own copy of 16 bytes is none.
#if defined(MSL_CPU)
#define MSL_COPIES(N)                                                \
  vec(const vec& other) { *this = other; }                           \
  vec& operator=(const vec& other) {                                 \
    for (int i = 0; i < N; i++) components[i] = other.components[i]; \
    return *this;                                                    \
  }
#else
#define MSL_COPIES(N)
#endif

#define MSL_VECTOR(N, ALIGNMENT, ...)                                                       \
  template <class T>                                                                        \
  struct alignas(ALIGNMENT * sizeof(T)) vec<T, N> {                                         \
    union {                                                                                 \
      struct {                                                                              \
        T __VA_ARGS__;                                                                      \
      };                                                                                    \
      T components[ALIGNMENT];                                                              \
    };                                                                                      \
    vec() = default;                                                                        \
    MSL_COPIES(N)                                                                           \
    template <class S, class = msl_enable_if_t<msl_is_number<S>>>                           \
    MSL_V vec(S all) {                                                                      \
      for (int i = 0; i < N; i++) components[i] = T(all);                                   \
    }                                                                                       \
    template <class A, class B, class... C, class = msl_enable_if_t<sizeof...(C) + 2 == N>> \
    MSL_V vec(A a, B b, C... rest) : components{T(a), T(b), T(rest)...} {}                  \
    template <class S, class = msl_enable_if_t<!msl_is_same<S, T>>, class = void>           \
    MSL_V explicit vec(vec<S, N> other) {                                                   \
      for (int i = 0; i < N; i++) components[i] = T(other.components[i]);                   \
    }                                                                                       \
    MSL_V T& operator[](int i) { return components[i]; }                                    \
    MSL_V const T& operator[](int i) const { return components[i]; }                        \
  }
MSL_VECTOR(2, 2, x, y);
MSL_VECTOR(3, 4, x, y, z);
MSL_VECTOR(4, 4, x, y, z, w);
#undef MSL_VECTOR
#undef MSL_COPIES

#define MSL_VECTOR_OPERATOR(R, op)                                              \
  template <class T, int N>                                                     \
  MSL_V vec<R, N> operator op(vec<T, N> a, vec<T, N> b) {                       \
    vec<R, N> result;                                                           \
    for (int i = 0; i < N; i++) result[i] = R(a[i] op b[i]);                    \
    return result;                                                              \
  }                                                                             \
  template <class T, int N, class S, class = msl_enable_if_t<msl_is_number<S>>> \
  MSL_V vec<R, N> operator op(vec<T, N> a, S b) {                               \
    return a op vec<T, N>(b);                                                   \
  }                                                                             \
  template <class T, int N, class S, class = msl_enable_if_t<msl_is_number<S>>> \
  MSL_V vec<R, N> operator op(S a, vec<T, N> b) {                               \
    return vec<T, N>(a) op b;                                                   \
  }                                                                             \
  static_assert(true, "")
#define MSL_VECTOR_ARITHMETIC(op)                         \
  MSL_VECTOR_OPERATOR(T, op);                             \
  template <class T, int N, class B>                      \
  MSL_V vec<T, N>& operator op## = (vec<T, N> & a, B b) { \
    return a = a op b;                                    \
  }                                                       \
  static_assert(true, "")
MSL_VECTOR_ARITHMETIC(+);
MSL_VECTOR_ARITHMETIC(-);
MSL_VECTOR_ARITHMETIC(*);
MSL_VECTOR_ARITHMETIC(/);
MSL_VECTOR_ARITHMETIC(&);
MSL_VECTOR_ARITHMETIC(|);
MSL_VECTOR_ARITHMETIC(^);
MSL_VECTOR_ARITHMETIC(<<);
MSL_VECTOR_ARITHMETIC(>>);
MSL_VECTOR_OPERATOR(bool, ==);
MSL_VECTOR_OPERATOR(bool, <);
MSL_VECTOR_OPERATOR(bool, >);
#undef MSL_VECTOR_ARITHMETIC
#undef MSL_VECTOR_OPERATOR

}  // namespace metal

using metal::vec;
#define MSL_VECTORS_OF(T) \
  typedef vec<T, 2> T##2; \
  typedef vec<T, 3> T##3; \
  typedef vec<T, 4> T##4; \
  static_assert(true, "")
MSL_VECTORS_OF(bool);
MSL_VECTORS_OF(uchar);
MSL_VECTORS_OF(ushort);
MSL_VECTORS_OF(int);
MSL_VECTORS_OF(uint);
MSL_VECTORS_OF(ulong);
MSL_VECTORS_OF(float);
MSL_VECTORS_OF(half);
MSL_VECTORS_OF(bfloat);
#undef MSL_VECTORS_OF

template <class To, class From>
MSL_V To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of one size");
  To result;
#if !defined(MSL_CHECK)
  MSL_MEMCPY((void*)&result, (const void*)&value, sizeof(To));
#endif
  return result;
}

}  // namespace mslns
