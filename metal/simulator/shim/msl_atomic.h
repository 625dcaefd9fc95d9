// msl_atomic.h - metal_atomic. Every read-modify-write is a compare-exchange
// loop on the 4- or 8-byte word, so all types and operations share one path.
#ifndef MSL_ATOMIC_H
#define MSL_ATOMIC_H
#include "msl_simd.h"
namespace mslns {
namespace metal {
enum class memory_order : int {
  memory_order_relaxed,
  memory_order_acquire,
  memory_order_release,
  memory_order_acq_rel,
  memory_order_seq_cst
};
typedef memory_order memory_order_t;
constexpr memory_order memory_order_relaxed = memory_order::memory_order_relaxed;
constexpr memory_order memory_order_acquire = memory_order::memory_order_acquire;
constexpr memory_order memory_order_release = memory_order::memory_order_release;
constexpr memory_order memory_order_acq_rel = memory_order::memory_order_acq_rel;
constexpr memory_order memory_order_seq_cst = memory_order::memory_order_seq_cst;

template <int bytes>
struct msl_word {
  typedef uint type;
};
template <>
struct msl_word<8> {
  typedef ulong type;
};
template <class T>
struct msl_atomic_rep {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomic of 4 or 8 bytes");
  typedef T type;
};
template <>
struct msl_atomic_rep<bool> {
  typedef uint type;
};

template <class T>
struct atomic {
  typename msl_atomic_rep<T>::type v;
};
template <class T>
using _atomic = atomic<T>;
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<bool> atomic_bool;
typedef atomic<ulong> atomic_ulong;
typedef atomic<float> atomic_float;

template <class T>
struct msl_atom {
  typedef typename msl_atomic_rep<T>::type R;
  typedef typename msl_word<sizeof(R)>::type W;
  MSL_V static W enc(T t) { return as_type<W>(R(t)); }
  MSL_V static T dec(W w) { return T(as_type<R>(w)); }
#if defined(MSL_CPU)
  static W load(const volatile void* p) { return __atomic_load_n((const volatile W*)p, __ATOMIC_SEQ_CST); }
  static bool cas(volatile void* p, W& o, W n) {
    return __atomic_compare_exchange_n((volatile W*)p, &o, n, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  }
#elif defined(MSL_CUDA)
  MSL_F static uint cas_(uint* p, uint o, uint n) { return ::atomicCAS(p, o, n); }
  MSL_F static ulong cas_(ulong* p, ulong o, ulong n) {
    return (ulong)::atomicCAS((unsigned long long*)p, (unsigned long long)o, (unsigned long long)n);
  }
  MSL_F static W load(const volatile void* p) { return *(const volatile W*)p; }
  MSL_F static bool cas(volatile void* p, W& o, W n) {
    W r = cas_((W*)p, o, n);
    bool ok = r == o;
    o = r;
    return ok;
  }
#endif
};
#if defined(MSL_CHECK)
#define MSL_RMW(name, expr, AS)                                                                \
  template <class T>                                                                           \
  MSL_F T atomic_fetch_##name##_explicit(volatile AS atomic<T>* p, msl_v<T> b, memory_order) { \
    return b;                                                                                  \
  }
#define MSL_LS(AS)                                                                                                   \
  template <class T>                                                                                                 \
  MSL_F T atomic_load_explicit(const volatile AS atomic<T>* p, memory_order) {                                       \
    return T();                                                                                                      \
  }                                                                                                                  \
  template <class T>                                                                                                 \
  MSL_F void atomic_store_explicit(volatile AS atomic<T>* p, msl_v<T> b, memory_order) {}                            \
  template <class T>                                                                                                 \
  MSL_F T atomic_exchange_explicit(volatile AS atomic<T>* p, msl_v<T> b, memory_order) {                             \
    return b;                                                                                                        \
  }                                                                                                                  \
  template <class T>                                                                                                 \
  MSL_F void atomic_min_explicit(volatile AS atomic<T>* p, msl_v<T> b, memory_order) {}                              \
  template <class T>                                                                                                 \
  MSL_F void atomic_max_explicit(volatile AS atomic<T>* p, msl_v<T> b, memory_order) {}                              \
  template <class T>                                                                                                 \
  MSL_F bool atomic_compare_exchange_weak_explicit(volatile AS atomic<T>* p, MSL_THR T* o, msl_v<T> n, memory_order, \
                                                   memory_order) {                                                   \
    return true;                                                                                                     \
  }
#else
template <class T, class F>
MSL_F T msl_rmw(volatile atomic<T>* p, F f) {
  typedef msl_atom<T> A;
  typename A::W o = A::load(p);
  while (!A::cas(p, o, A::enc(f(A::dec(o))))) {
  }
  return A::dec(o);
}
#define MSL_RMW(name, expr, AS)                                                             \
  template <class T>                                                                        \
  struct msl_rmw_##name {                                                                   \
    T b;                                                                                    \
    MSL_V T operator()(T a) const { return T(expr); }                                       \
  };                                                                                        \
  template <class T>                                                                        \
  MSL_F T atomic_fetch_##name##_explicit(volatile atomic<T>* p, msl_v<T> b, memory_order) { \
    return msl_rmw(p, msl_rmw_##name<T>{b});                                                \
  }
#define MSL_LS(AS)                                                                                        \
  template <class T>                                                                                      \
  MSL_F T atomic_load_explicit(const volatile atomic<T>* p, memory_order) {                               \
    return msl_atom<T>::dec(msl_atom<T>::load(p));                                                        \
  }                                                                                                       \
  template <class T>                                                                                      \
  struct msl_rmw_xchg {                                                                                   \
    T b;                                                                                                  \
    MSL_V T operator()(T) const { return b; }                                                             \
  };                                                                                                      \
  template <class T>                                                                                      \
  MSL_F T atomic_exchange_explicit(volatile atomic<T>* p, msl_v<T> b, memory_order) {                     \
    return msl_rmw(p, msl_rmw_xchg<T>{b});                                                                \
  }                                                                                                       \
  template <class T>                                                                                      \
  MSL_F void atomic_store_explicit(volatile atomic<T>* p, msl_v<T> b, memory_order o) {                   \
    atomic_exchange_explicit(p, b, o);                                                                    \
  }                                                                                                       \
  template <class T>                                                                                      \
  MSL_F void atomic_min_explicit(volatile atomic<T>* p, msl_v<T> b, memory_order o) {                     \
    atomic_fetch_min_explicit(p, b, o);                                                                   \
  }                                                                                                       \
  template <class T>                                                                                      \
  MSL_F void atomic_max_explicit(volatile atomic<T>* p, msl_v<T> b, memory_order o) {                     \
    atomic_fetch_max_explicit(p, b, o);                                                                   \
  }                                                                                                       \
  template <class T>                                                                                      \
  MSL_F bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* p, T* o, msl_v<T> n, memory_order, \
                                                   memory_order) {                                        \
    typename msl_atom<T>::W w = msl_atom<T>::enc(*o);                                                     \
    bool ok = msl_atom<T>::cas(p, w, msl_atom<T>::enc(n));                                                \
    *o = msl_atom<T>::dec(w);                                                                             \
    return ok;                                                                                            \
  }
#endif
#define MSL_X(AS)                                                                                          \
  MSL_RMW(add, a + b, AS)                                                                                  \
  MSL_RMW(sub, a - b, AS)                                                                                  \
  MSL_RMW(and, a& b, AS) MSL_RMW(or, a | b, AS) MSL_RMW(xor, a ^ b, AS) MSL_RMW(min, metal::min(a, b), AS) \
      MSL_RMW(max, metal::max(a, b), AS) MSL_LS(AS)
MSL_EACH_SHARED(MSL_X)
#undef MSL_X
MSL_F void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {
#if defined(MSL_CUDA)
  __threadfence();
#endif
}
}  // namespace metal
}  // namespace mslns
#endif
