// A kernel's arguments: buffers, and where a thread is. The entry points that the translator writes pass values that
// convert to whatever type a parameter has, so that it need not know types.
#pragma once

#include "vector.h"

namespace mslns {

#if defined(MSL_CPU)
// A threadgroup variable: one object for each threadgroup, known by its declaration.
template <class T>
inline T& msl_tg_var(unsigned id, const char* name) {
  return *(T*)mslrt_tg_var(id, sizeof(T), name);
}
#elif defined(MSL_CHECK)
template <class T>
__local T& msl_tg_var();
#endif

#if !defined(MSL_CHECK)
struct msl_buf {
  void* memory;

  template <class T>
  MSL_V operator T*() const {
    return (T*)memory;
  }
  template <class T>
  MSL_V operator T&() const {
    return *(T*)memory;
  }
};

struct msl_position {
  uint x, y, z;

  MSL_V operator uint() const { return x; }
  MSL_V operator ushort() const { return ushort(x); }
  MSL_V operator uint2() const { return uint2(x, y); }
  MSL_V operator uint3() const { return uint3(x, y, z); }
  MSL_V operator ushort2() const { return ushort2(x, y); }
  MSL_V operator ushort3() const { return ushort3(x, y, z); }
};

struct msl_thread {
  msl_position in_threadgroup;
  msl_position threadgroup;
  msl_position threads;  // of a threadgroup
  msl_position threadgroups;
  uint index;  // in the threadgroup
};

MSL_V msl_position msl_scalar(uint value) { return {value, 0, 0}; }
MSL_V msl_position msl_thread_position_in_grid(const msl_thread& t) {
  return {t.threadgroup.x * t.threads.x + t.in_threadgroup.x, t.threadgroup.y * t.threads.y + t.in_threadgroup.y,
          t.threadgroup.z * t.threads.z + t.in_threadgroup.z};
}
MSL_V msl_position msl_threads_per_grid(const msl_thread& t) {
  return {t.threadgroups.x * t.threads.x, t.threadgroups.y * t.threads.y, t.threadgroups.z * t.threads.z};
}
MSL_V msl_position msl_threadgroup_position_in_grid(const msl_thread& t) { return t.threadgroup; }
MSL_V msl_position msl_threadgroups_per_grid(const msl_thread& t) { return t.threadgroups; }
MSL_V msl_position msl_thread_position_in_threadgroup(const msl_thread& t) { return t.in_threadgroup; }
MSL_V msl_position msl_threads_per_threadgroup(const msl_thread& t) { return t.threads; }
MSL_V msl_position msl_thread_index_in_threadgroup(const msl_thread& t) { return msl_scalar(t.index); }
MSL_V msl_position msl_thread_index_in_simdgroup(const msl_thread& t) { return msl_scalar(t.index % 32); }
MSL_V msl_position msl_simdgroup_index_in_threadgroup(const msl_thread& t) { return msl_scalar(t.index / 32); }
MSL_V msl_position msl_simdgroups_per_threadgroup(const msl_thread& t) {
  return msl_scalar((t.threads.x * t.threads.y * t.threads.z + 31) / 32);
}
MSL_V msl_position msl_threads_per_simdgroup(const msl_thread&) { return msl_scalar(32); }
#endif

#if defined(MSL_CUDA)
MSL_F msl_thread msl_this_thread() {
  return {{threadIdx.x, threadIdx.y, threadIdx.z},
          {blockIdx.x, blockIdx.y, blockIdx.z},
          {blockDim.x, blockDim.y, blockDim.z},
          {gridDim.x, gridDim.y, gridDim.z},
          threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)};
}
#endif

}  // namespace mslns
