// One launch of a kernel, as launch.py and the fake Metal device describe it to the fibers.
#pragma once

#include <cstdint>

namespace mslns {
struct msl_thread;
}
typedef void (*MslKernel)(void** buffers, const mslns::msl_thread* thread);

inline constexpr uint32_t kMostBuffers = 31;  // Metal's argument table

extern "C" struct MslLaunch {
  MslKernel function;
  void** buffers;
  const uint64_t* buffer_bytes;  // 0: not guarded, as it lies
  uint32_t buffer_count;
  uint32_t threadgroups[3];
  uint32_t threads[3];         // of a threadgroup
  uint32_t schedule;           // the order of simdgroups and lanes: 0 forward, 1 reverse, 2 random
  uint64_t seed;               // of the random one
  uint32_t strict;             // a simdgroup function that only some live lanes reach is an error
  uint32_t guard;              // on copies of the buffers that end at a page that cannot be touched
  uint32_t threadgroup_limit;  // bytes of threadgroup memory
  uint32_t flush_subnormals;
  // Results.
  uint64_t diverged;              // simdgroup functions that only some live lanes reached
  uint64_t loaded[kMostBuffers];  // bytes of each buffer, each once a simdgroup, where loads are counted
  char note[512];                 // the first divergence
  char error[1024];               // why the launch ended early
  uint64_t fault;                 // the instruction that faulted, from the beginning of its library
};

extern "C" {
int mslrt_launch(MslLaunch* launch);
unsigned long mslrt_launch_size(void);
}
