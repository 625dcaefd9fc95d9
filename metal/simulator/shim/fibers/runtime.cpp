// What kernels call, and what launches them.
#include <cstdio>
#include <cstring>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "faults.h"
#include "threadgroup.h"

namespace {

using fibers::GuardedMemory;
using fibers::Threadgroup;

// Float subnormals as zeros, where asked for.
class FlushedSubnormals {
 public:
  explicit FlushedSubnormals(bool flushed) {
#if defined(__x86_64__)
    constexpr unsigned kFlushResultsAndOperands = 0x8040;
    previous_ = _mm_getcsr();
    if (flushed) _mm_setcsr(previous_ | kFlushResultsAndOperands);
#else
    (void)flushed;
#endif
  }
  ~FlushedSubnormals() {
#if defined(__x86_64__)
    _mm_setcsr(previous_);
#endif
  }
  FlushedSubnormals(const FlushedSubnormals&) = delete;
  FlushedSubnormals& operator=(const FlushedSubnormals&) = delete;

 private:
  unsigned previous_ = 0;
};

// A launch's buffers: guarded copies, or as they lie.
class Buffers {
 public:
  explicit Buffers(MslLaunch& launch) : launch_(launch), memory_(launch.buffer_count) {
    for (uint32_t i = 0; i < launch.buffer_count; ++i) {
      pointers_.push_back(launch.buffers[i]);
      const uint64_t bytes = launch.buffer_bytes[i];
      if (!launch.guard || !launch.buffers[i] || !bytes) continue;
      memory_[i] = GuardedMemory(bytes);
      std::memcpy(memory_[i].data(), launch.buffers[i], bytes);
      pointers_[i] = memory_[i].data();
      regions_.push_back({i, &memory_[i]});
    }
  }

  void** pointers() { return pointers_.data(); }
  const std::vector<fibers::Region>& regions() const { return regions_; }

  void copy_back() {
    for (const fibers::Region& region : regions_) {
      const GuardedMemory& memory = *region.memory;
      if (!memory.intact() && !launch_.error[0]) {
        std::snprintf(launch_.error, sizeof launch_.error, "write past the end of buffer(%u), which has %zu bytes",
                      region.buffer, memory.size());
      }
      std::memcpy(launch_.buffers[region.buffer], memory.data(), memory.size());
    }
  }

 private:
  MslLaunch& launch_;
  std::vector<GuardedMemory> memory_;
  std::vector<void*> pointers_;
  std::vector<fibers::Region> regions_;
};

void run_threadgroups(MslLaunch& launch, Buffers& buffers) {
  Threadgroup group(launch, buffers.pointers(), buffers.regions());
  const uint32_t* const size = launch.threadgroups;
  const uint64_t count = uint64_t{size[0]} * size[1] * size[2];
  for (uint64_t i = 0; i < count && !group.failed(); ++i) {
    const auto index = static_cast<uint32_t>(launch.schedule == 1 ? count - 1 - i : i);
    group.run({index % size[0], index / size[0] % size[1], index / size[0] / size[1]});
  }
}

void count_load(const void* address, size_t bytes) {
  Threadgroup* const group = Threadgroup::current();
  if (group && group->fiber()) group->count_load(static_cast<const char*>(address), bytes);
}

}  // namespace

extern "C" {

int mslrt_launch(MslLaunch* launch) {
  launch->error[0] = launch->note[0] = '\0';
  launch->diverged = launch->fault = 0;
  std::memset(launch->loaded, 0, sizeof launch->loaded);
  Buffers buffers(*launch);
  {
    const fibers::FaultHandlers handlers;
    const FlushedSubnormals flushed(launch->flush_subnormals != 0);
    run_threadgroups(*launch, buffers);
  }
  buffers.copy_back();
  return launch->error[0] ? 1 : 0;
}

unsigned long mslrt_launch_size(void) { return sizeof(MslLaunch); }

unsigned mslrt_lane(void) { return Threadgroup::current()->fiber()->thread.index % 32; }

void mslrt_simd(mslrt_collective function, void* argument, const char* name, const char* file, int position) {
  Threadgroup::current()->call(function, argument, name, {file, position});
}

void mslrt_barrier(unsigned flags, const char* file, int position) {
  Threadgroup::current()->barrier(flags != 0, {file, position});
}

void* mslrt_tg_var(unsigned id, unsigned long size, const char* name) {
  return Threadgroup::current()->variable(id, size, name);
}

// Of kernels that are compiled with -fsanitize-coverage=trace-loads, for every load.
void __sanitizer_cov_load1(void* address) { count_load(address, 1); }
void __sanitizer_cov_load2(void* address) { count_load(address, 2); }
void __sanitizer_cov_load4(void* address) { count_load(address, 4); }
void __sanitizer_cov_load8(void* address) { count_load(address, 8); }
void __sanitizer_cov_load16(void* address) { count_load(address, 16); }
}
