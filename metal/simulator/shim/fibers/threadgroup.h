// The threads of one threadgroup as fibers of one thread of this machine.
//
// A fiber runs until it comes to a simdgroup function, a barrier or its end. When no lane of a simdgroup can run, those
// that wait at one call execute it together; when no thread of the threadgroup can, the barrier opens. So every legal
// kernel has a meaning, whatever the order; and what is not legal is noticed: lanes or threads that wait at different
// places, accesses out of bounds (guard pages), threadgroup memory that is read before it is written (NaN).
#pragma once

#include <map>
#include <string>
#include <vector>

#define MSL_CPU 1
#include "../launch.h"
#include "../positions.h"
#include "context.h"
#include "guarded_memory.h"
#include "sanitizer.h"

namespace fibers {

enum class State { kReady, kAtSimdgroupFunction, kAtBarrier, kDone };

// A call in a kernel file; position = line · 1024 + column.
struct Place {
  const char* file = "";
  int position = 0;

  int line() const { return position / 1024; }
  bool operator==(const Place& other) const;
};

struct Fiber {
  Context context;
  State state;
  mslns::msl_thread thread;
  // Where it waits, and for what.
  Place place;
  const char* waits_for = "";
  mslrt_collective function = nullptr;
  void* argument = nullptr;
  char* stack = nullptr;
  sanitizer::Thread sanitized{};
};

struct ThreadgroupVariable {
  GuardedMemory memory;
  uint64_t threadgroup = 0;  // the last that used it, by number
  const char* name = "";
};

// Memory of a buffer that is guarded.
struct Region {
  uint32_t buffer;
  const GuardedMemory* memory;
};

// xorshift64*
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint32_t below(uint32_t bound);
  void shuffle(uint32_t* items, uint32_t count);

 private:
  uint64_t state_;
};

class Threadgroup {
 public:
  Threadgroup(MslLaunch& launch, void** buffers, const std::vector<Region>& regions);
  ~Threadgroup();
  Threadgroup(const Threadgroup&) = delete;
  Threadgroup& operator=(const Threadgroup&) = delete;

  // The one that this thread runs; null outside launches.
  static Threadgroup* current();

  void run(mslns::msl_position position);
  bool failed() const { return launch_.error[0] != '\0'; }

  // Of the running fiber.
  Fiber* fiber() { return fiber_; }
  void wait(State state, const char* what, Place place);
  void call(mslrt_collective function, void* argument, const char* name, Place place);
  void barrier(bool orders_memory, Place place);
  void* variable(unsigned id, size_t size, const char* name);
  void count_load(const char* address, size_t bytes);
  // Ends the launch from a signal handler: never returns.
  [[noreturn]] void abandon(const std::string& message);

  std::string describe(const Fiber& fiber) const;
  // What an address out of bounds is near to.
  std::string describe(const char* address) const;
  MslLaunch& launch() { return launch_; }

 private:
  static void fiber_main();
  void begin(mslns::msl_position position);
  void enter(Fiber& fiber);
  void leave();
  bool run_simdgroups();
  void run_simdgroup(uint32_t simdgroup);
  void run_ready_lanes(uint32_t first, uint32_t end);
  bool execute_collective(uint32_t first, uint32_t end);
  void note_divergence(const Fiber& first, uint32_t active, uint32_t first_lane, uint32_t end);
  bool open_barrier();
  void check_memory();
  void fail(const std::string& message);
  void note(const std::string& message);

  MslLaunch& launch_;
  void** buffers_;
  const std::vector<Region>& regions_;
  Random random_;
  uint64_t number_ = 0;  // of threadgroups so far
  uint32_t count_ = 0;   // of threads
  std::vector<Fiber> fibers_;
  std::map<unsigned, ThreadgroupVariable> variables_;
  uint64_t threadgroup_bytes_ = 0;
  Context scheduler_{};
  Fiber* fiber_ = nullptr;
  // Lanes that run one after the other without the scheduler between them, and which of them is next.
  uint32_t order_[32] = {};
  uint32_t ready_ = 0;
  uint32_t next_ = 0;
  // Bytes that a simdgroup has loaded of a buffer.
  std::map<std::pair<uint32_t, uint32_t>, std::vector<bool>> loaded_;
  // Tokens; neighbouring barriers take turns between two, so that they do not order each other's fibers twice.
  sanitizer::Thread sanitized_scheduler_ = sanitizer::current();
  char begin_token_ = 0;
  char end_token_ = 0;
  char barrier_tokens_[2] = {};
  char simdgroup_tokens_[32][2] = {};
  unsigned barriers_ = 0;
  unsigned simdgroup_barriers_[32] = {};
};

}  // namespace fibers
