// msl.h - everything a translated MSL program sees.
#ifndef MSL_H
#define MSL_H
#include "msl_atomic.h"

namespace mslns {
namespace metal {
template <class T>
using uniform = T;  // metal_uniform: a promise to the optimiser
template <class T>
MSL_C T make_uniform(T v) {
  return v;
}
struct os_log {  // metal_logging: accepted, not printed
#if defined(MSL_CHECK)
  constexpr os_log(const __constant char*, const __constant char*) __constant {}
#define MSL_LOG(AS, n)  \
  template <class... A> \
  void n(const __constant char*, A...) const AS {}
  MSL_LOG(__private, log_debug)
  MSL_LOG(__private, log_info)
  MSL_LOG(__private, log_error) MSL_LOG(__private, log) MSL_LOG(__constant, log_debug) MSL_LOG(__constant, log_info)
      MSL_LOG(__constant, log_error) MSL_LOG(__constant, log)
#else
  MSL_V constexpr os_log(const char*, const char*) {}
#define MSL_LOG(n)      \
  template <class... A> \
  MSL_V void n(const char*, A...) const {}
  MSL_LOG(log_debug) MSL_LOG(log_info) MSL_LOG(log_error) MSL_LOG(log)
#endif
#undef MSL_LOG
};
}  // namespace metal

// Compiler builtins of Apple's toolchain that MLX calls directly.
#define MSL_X(n)                              \
  template <class T>                          \
  MSL_F auto __metal_##n(T x, bool = false) { \
    return metal::n(x);                       \
  }
MSL_X(fabs)
MSL_X(acos)
MSL_X(acosh) MSL_X(asin) MSL_X(asinh) MSL_X(atan) MSL_X(atanh) MSL_X(ceil) MSL_X(cos) MSL_X(cosh) MSL_X(cospi)
    MSL_X(exp) MSL_X(exp10) MSL_X(exp2) MSL_X(floor) MSL_X(fract) MSL_X(log) MSL_X(log10) MSL_X(log2) MSL_X(rint)
        MSL_X(round) MSL_X(rsqrt) MSL_X(sin) MSL_X(sinh) MSL_X(sinpi) MSL_X(sqrt) MSL_X(tan) MSL_X(tanh) MSL_X(tanpi)
            MSL_X(trunc)
#undef MSL_X
#define MSL_X(n)                                   \
  template <class T>                               \
  MSL_F auto __metal_##n(T x, T y, bool = false) { \
    return metal::n(x, y);                         \
  }
                MSL_X(atan2) MSL_X(divide) MSL_X(fmax) MSL_X(fmin) MSL_X(fmod) MSL_X(nextafter) MSL_X(pow) MSL_X(powr)
#undef MSL_X
#define MSL_X(n)                                        \
  template <class T>                                    \
  MSL_F auto __metal_##n(T x, T y, T z, bool = false) { \
    return metal::n(x, y, z);                           \
  }
                    MSL_X(fma) MSL_X(fmax3) MSL_X(fmin3) MSL_X(fmedian3)
#undef MSL_X
                        MSL_F float __metal_frexp(float x, MSL_THR int* e) {
  return metal::frexp(x, *e);
}
MSL_F float __metal_ldexp(float x, int k, bool = false) { return metal::ldexp(x, k); }
#define MSL_X(n)                     \
  template <class T>                 \
  MSL_F auto __metal_simd_##n(T x) { \
    return metal::simd_##n(x);       \
  }
MSL_X(sum)
MSL_X(product)
MSL_X(min) MSL_X(max) MSL_X(prefix_exclusive_product) MSL_X(prefix_exclusive_sum) MSL_X(prefix_inclusive_product)
    MSL_X(prefix_inclusive_sum)
#undef MSL_X
        MSL_F float __metal_simd_xor(float x) {
  return x;
}  // declared by MLX for bfloat, meaningless for floats
#define MSL_X(n)                               \
  template <class T>                           \
  MSL_F auto __metal_simd_##n(T x, ushort k) { \
    return metal::simd_##n(x, k);              \
  }
MSL_X(broadcast)
MSL_X(shuffle)
MSL_X(shuffle_down) MSL_X(shuffle_up) MSL_X(shuffle_rotate_down) MSL_X(shuffle_rotate_up) MSL_X(shuffle_xor)
#undef MSL_X
    template <class T>
    MSL_F auto __metal_simd_shuffle_and_fill_down(T a, T b, ushort d, ushort m) {
  return metal::simd_shuffle_and_fill_down(a, b, d, m);
}
template <class T>
MSL_F auto __metal_simd_shuffle_and_fill_up(T a, T b, ushort d, ushort m) {
  return metal::simd_shuffle_and_fill_up(a, b, d, m);
}
MSL_F ushort __metal_get_simdgroup_size(ushort) { return 32; }

// --------------------------------------------------- support for generated code
#if defined(MSL_CPU)
#define MSL_ASSERT(e, text, file, line) ((e) ? (void)0 : mslrt_assert_fail(text, file, line))
// A threadgroup variable: one object per threadgroup, identified by its declaration.
template <class T>
inline T& msl_tg_var(unsigned id, const char* name, int zero) {
  return *(T*)mslrt_tg_var(id, sizeof(T), zero, name);
}
#elif defined(MSL_CUDA)
#define MSL_ASSERT(e, text, file, line) ((void)0)
#else
#define MSL_ASSERT(e, text, file, line) ((void)(e))
template <class T>
__local T& msl_tg_var();
#endif

// Kernel arguments. The wrapper of a kernel passes these and lets the parameter
// type choose the conversion, so the generator never has to spell dependent types.
#if !defined(MSL_CHECK)
struct msl_buf {  // buffer(n) / threadgroup(n)
  void* p;
  template <class T>
  MSL_V operator T*() const {
    return (T*)p;
  }
  template <class T>
  MSL_V operator T&() const {
    return *(T*)p;
  }
};
struct msl_pos {  // position attributes: uint, ushort, or 2/3-vectors of them
  uint x, y, z;
  MSL_V operator uint() const { return x; }
  MSL_V operator ushort() const { return ushort(x); }
  MSL_V operator int() const { return int(x); }
  MSL_V operator short() const { return short(x); }
  MSL_V operator uint2() const { return uint2(x, y); }
  MSL_V operator uint3() const { return uint3(x, y, z); }
  MSL_V operator ushort2() const { return ushort2(ushort(x), ushort(y)); }
  MSL_V operator ushort3() const { return ushort3(ushort(x), ushort(y), ushort(z)); }
};
struct msl_thread {                     // where this thread is
  msl_pos tid, tg, tpg, grid, threads;  // in threadgroup, threadgroup, threads per group, groups, threads per grid
  msl_pos full;                         // dispatched threads per threadgroup (tpg is smaller in edge groups)
  uint index;                           // linear index in threadgroup
};
#define MSL_LIN(p) ((p).x * (p).y * (p).z)
#define MSL_P1(v) msl_pos{(v), 0u, 0u}
#define MSL_P3(a, b, c) \
  msl_pos { (a), (b), (c) }
MSL_V msl_pos msl_thread_position_in_grid(const msl_thread& t) {
  return MSL_P3(t.tg.x * t.full.x + t.tid.x, t.tg.y * t.full.y + t.tid.y, t.tg.z * t.full.z + t.tid.z);
}
MSL_V msl_pos msl_threadgroup_position_in_grid(const msl_thread& t) { return t.tg; }
MSL_V msl_pos msl_thread_position_in_threadgroup(const msl_thread& t) { return t.tid; }
MSL_V msl_pos msl_thread_index_in_threadgroup(const msl_thread& t) { return MSL_P1(t.index); }
MSL_V msl_pos msl_thread_index_in_simdgroup(const msl_thread& t) { return MSL_P1(t.index & 31u); }
MSL_V msl_pos msl_simdgroup_index_in_threadgroup(const msl_thread& t) { return MSL_P1(t.index >> 5); }
MSL_V msl_pos msl_thread_index_in_quadgroup(const msl_thread& t) { return MSL_P1(t.index & 3u); }
MSL_V msl_pos msl_quadgroup_index_in_threadgroup(const msl_thread& t) { return MSL_P1(t.index >> 2); }
MSL_V msl_pos msl_simdgroups_per_threadgroup(const msl_thread& t) { return MSL_P1((MSL_LIN(t.tpg) + 31u) >> 5); }
MSL_V msl_pos msl_dispatch_simdgroups_per_threadgroup(const msl_thread& t) {
  return MSL_P1((MSL_LIN(t.full) + 31u) >> 5);
}
MSL_V msl_pos msl_quadgroups_per_threadgroup(const msl_thread& t) { return MSL_P1((MSL_LIN(t.tpg) + 3u) >> 2); }
MSL_V msl_pos msl_dispatch_quadgroups_per_threadgroup(const msl_thread& t) {
  return MSL_P1((MSL_LIN(t.full) + 3u) >> 2);
}
MSL_V msl_pos msl_threads_per_threadgroup(const msl_thread& t) { return t.tpg; }
MSL_V msl_pos msl_dispatch_threads_per_threadgroup(const msl_thread& t) { return t.full; }
MSL_V msl_pos msl_threads_per_grid(const msl_thread& t) { return t.threads; }
MSL_V msl_pos msl_grid_size(const msl_thread& t) { return t.threads; }
MSL_V msl_pos msl_threadgroups_per_grid(const msl_thread& t) { return t.grid; }
MSL_V msl_pos msl_threads_per_simdgroup(const msl_thread&) { return MSL_P1(32u); }
MSL_V msl_pos msl_thread_execution_width(const msl_thread&) { return MSL_P1(32u); }
MSL_V msl_pos msl_grid_origin(const msl_thread&) { return MSL_P3(0u, 0u, 0u); }
#endif
#if defined(MSL_CUDA)
MSL_F msl_thread msl_this_thread() {
  msl_thread t;
  t.tid = MSL_P3(threadIdx.x, threadIdx.y, threadIdx.z);
  t.tg = MSL_P3(blockIdx.x, blockIdx.y, blockIdx.z);
  t.tpg = t.full = MSL_P3(blockDim.x, blockDim.y, blockDim.z);
  t.grid = MSL_P3(gridDim.x, gridDim.y, gridDim.z);
  t.threads = MSL_P3(gridDim.x * blockDim.x, gridDim.y * blockDim.y, gridDim.z * blockDim.z);
  t.index = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  return t;
}
#endif
}  // namespace mslns
#endif
