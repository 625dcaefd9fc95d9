// One dispatch, as runner.py and the fake Metal device describe it to the fibers.
#pragma once

#include <cstdint>

namespace mslns {
struct msl_thread;
}
typedef void (*KernelFn)(void**, void**, const mslns::msl_thread*);

extern "C" struct MslLaunch {  // filled by the caller (mirrored in runner.py)
  KernelFn fn;
  void** bufs;                // one pointer per buffer index
  const uint64_t* buf_bytes;  // 0: pass the pointer through, no guard copy
  uint32_t nbufs;
  uint32_t tg_bytes[8];  // sizes of [[threadgroup(n)]] arguments
  uint32_t grid[3];      // threadgroups
  uint32_t tpg[3];       // threads per threadgroup
  uint32_t threads[3];   // dispatchThreads: total threads (0 = grid * tpg)
  uint32_t workers;      // host threads
  uint32_t schedule;     // order of simdgroups and lanes: 0 forward, 1 reverse, 2 random
  uint64_t seed;
  uint32_t strict;    // divergence is an error, not only counted
  uint32_t guard;     // 1: run on guarded copies of the buffers
  uint32_t tg_limit;  // threadgroup memory limit in bytes
  uint32_t ftz;       // flush float denormals (inputs and results)
  uint32_t timeout;   // seconds, 0 = none (one worker only)
  // results
  uint64_t n_threads, n_simd, n_barrier, n_diverged, n_partial, tg_used;
  uint64_t loaded[32];  // bytes of each buffer, each once a simdgroup, where kernels are compiled with trace-loads
  char note[512];     // first divergence seen
  char err[1024];     // why the run stopped
  uint64_t fault_pc;  // offset in this library of the faulting instruction
};
