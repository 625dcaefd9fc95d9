#include "threadgroup.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fibers {

namespace {

constexpr uint32_t kLanes = 32;
constexpr size_t kPage = 4096;
constexpr size_t kStack = size_t{256} << 10;
constexpr uint32_t kReverse = 1;
constexpr uint32_t kRandom = 2;
constexpr const char* kSimdgroupBarrier = "simdgroup_barrier";

__attribute__((tls_model("initial-exec"))) thread_local Threadgroup* running = nullptr;

char* new_stack() {
  void* const stack =
      mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED || mprotect(stack, kPage, PROT_NONE)) {
    std::perror("the simulator has no memory for a stack");
    std::abort();
  }
  return static_cast<char*>(stack);
}

std::string place(const Fiber& fiber) {
  return std::string(fiber.place.file) + ":" + std::to_string(fiber.place.line());
}

}  // namespace

bool Place::operator==(const Place& other) const {
  return position == other.position && std::strcmp(file, other.file) == 0;
}

uint32_t Random::below(uint32_t bound) {
  state_ ^= state_ >> 12;
  state_ ^= state_ << 25;
  state_ ^= state_ >> 27;
  return static_cast<uint32_t>((state_ * 0x2545F4914F6CDD1Du) >> 33) % bound;
}

void Random::shuffle(uint32_t* items, uint32_t count) {
  for (uint32_t i = count; i > 1; --i) std::swap(items[i - 1], items[below(i)]);
}

Threadgroup::Threadgroup(MslLaunch& launch, void** buffers, const std::vector<Region>& regions)
    : launch_(launch), buffers_(buffers), regions_(regions), random_(launch.seed) {
  running = this;
}

Threadgroup::~Threadgroup() {
  for (Fiber& fiber : fibers_) {
    if (fiber.stack) munmap(fiber.stack, kPage + kStack);
  }
  running = nullptr;
}

Threadgroup* Threadgroup::current() { return running; }

void Threadgroup::run(mslns::msl_position position) {
  begin(position);
  while (run_simdgroups() && open_barrier()) {
  }
  if (failed()) return;
  sanitizer::acquire(&end_token_);
  check_memory();
}

void Threadgroup::begin(mslns::msl_position position) {
  ++number_;
  threadgroup_bytes_ = 0;
  loaded_.clear();
  const uint32_t* const size = launch_.threads;
  count_ = size[0] * size[1] * size[2];
  if (fibers_.size() < count_) fibers_.resize(count_);
  for (uint32_t i = 0; i < count_; ++i) {
    Fiber& fiber = fibers_[i];
    if (!fiber.stack) {
      fiber.stack = new_stack();
      fiber.sanitized = sanitizer::create();
    }
    const uint32_t* const groups = launch_.threadgroups;
    fiber.thread = {{i % size[0], i / size[0] % size[1], i / (size[0] * size[1])},
                    position,
                    {size[0], size[1], size[2]},
                    {groups[0], groups[1], groups[2]},
                    i};
    fiber.state = State::kReady;
    begin_at(fiber.context, fiber.stack + kPage + kStack, kStack, fiber_main);
  }
  sanitizer::release(&begin_token_);  // threadgroups are ordered: only races inside one are looked for
}

void Threadgroup::fiber_main() {
  Threadgroup& group = *running;
  Fiber& own = *group.fiber_;
  sanitizer::acquire(&group.begin_token_);
  group.launch_.function(group.buffers_, &own.thread);
  sanitizer::release(&group.end_token_);
  own.state = State::kDone;
  group.leave();
  std::abort();  // a fiber that is done is not entered again
}

void Threadgroup::enter(Fiber& fiber) {
  sanitizer::change_to(fiber.sanitized);
  fiber_ = &fiber;
  change(scheduler_, fiber.context);
  fiber_ = nullptr;
}

// From a fiber: goes on with the next lane that is ready, or with the scheduler when there is none.
__attribute__((noinline)) void Threadgroup::leave() {
  Fiber& own = *fiber_;
  while (next_ < ready_) {
    Fiber& other = fibers_[order_[next_++]];
    if (other.state != State::kReady) continue;
    fiber_ = &other;
    sanitizer::change_to(other.sanitized);
    change(own.context, other.context);
    return;
  }
  sanitizer::change_to(sanitized_scheduler_);
  change(own.context, scheduler_);
}

// Until every thread waits at a barrier or is done; false when the launch has failed.
bool Threadgroup::run_simdgroups() {
  const uint32_t simdgroups = (count_ + kLanes - 1) / kLanes;
  std::vector<uint32_t> order(simdgroups);
  for (uint32_t i = 0; i < simdgroups; ++i) order[i] = launch_.schedule == kReverse ? simdgroups - 1 - i : i;
  if (launch_.schedule == kRandom) random_.shuffle(order.data(), simdgroups);
  for (const uint32_t simdgroup : order) {
    run_simdgroup(simdgroup);
    if (failed()) return false;
  }
  return true;
}

void Threadgroup::run_simdgroup(uint32_t simdgroup) {
  const uint32_t first = simdgroup * kLanes;
  const uint32_t end = std::min(first + kLanes, count_);
  do {
    run_ready_lanes(first, end);
  } while (!failed() && execute_collective(first, end));
}

void Threadgroup::run_ready_lanes(uint32_t first, uint32_t end) {
  ready_ = 0;
  for (uint32_t i = first; i < end; ++i) {
    if (fibers_[i].state == State::kReady) order_[ready_++] = i;
  }
  if (ready_ == 0) return;
  if (launch_.schedule == kReverse) {
    for (uint32_t i = 0; i < ready_ / 2; ++i) std::swap(order_[i], order_[ready_ - 1 - i]);
  }
  if (launch_.schedule == kRandom) random_.shuffle(order_, ready_);
  next_ = 1;
  enter(fibers_[order_[0]]);
}

// Executes the simdgroup function that lanes wait at, of several the first in the file; false when none waits.
bool Threadgroup::execute_collective(uint32_t first_lane, uint32_t end) {
  const auto waits = [&](uint32_t i) { return fibers_[i].state == State::kAtSimdgroupFunction; };
  const Fiber* first = nullptr;
  for (uint32_t i = first_lane; i < end; ++i) {
    if (waits(i) && (!first || fibers_[i].place.position < first->place.position)) first = &fibers_[i];
  }
  if (!first) return false;
  void* arguments[kLanes] = {};
  uint32_t active = 0;
  uint32_t alive = 0;
  for (uint32_t i = first_lane; i < end; ++i) {
    const uint32_t lane = 1u << (i - first_lane);
    if (fibers_[i].state != State::kDone) alive |= lane;
    if (!waits(i) || !(fibers_[i].place == first->place) || fibers_[i].function != first->function) continue;
    arguments[i - first_lane] = fibers_[i].argument;
    active |= lane;
  }
  if (active != alive) note_divergence(*first, active, first_lane, end);
  if (failed()) return false;
  first->function(arguments, active);
  if (std::strcmp(first->waits_for, kSimdgroupBarrier) == 0) ++simdgroup_barriers_[first_lane / kLanes % kLanes];
  for (uint32_t i = first_lane; i < end; ++i) {
    if (active >> (i - first_lane) & 1) fibers_[i].state = State::kReady;
  }
  return true;
}

void Threadgroup::note_divergence(const Fiber& first, uint32_t active, uint32_t first_lane, uint32_t end) {
  ++launch_.diverged;
  uint32_t other = first_lane;
  while (other < end && (fibers_[other].state == State::kDone || (active >> (other - first_lane) & 1))) ++other;
  char lanes[16];
  std::snprintf(lanes, sizeof lanes, "%08x", active);
  const std::string message = place(first) + ": " + first.waits_for + " executed by lanes " + lanes +
                              " only, while lane " + std::to_string(other - first_lane) + " waits at " +
                              fibers_[other].waits_for + " (" + place(fibers_[other]) + "); simdgroup of " +
                              describe(fibers_[first_lane]);
  launch_.strict ? fail(message) : note(message);
}

// Lets all threads that wait go on; false when none waits, or when they must not.
bool Threadgroup::open_barrier() {
  const Fiber* first = nullptr;
  bool some_done = false;
  for (uint32_t i = 0; i < count_; ++i) {
    const Fiber& fiber = fibers_[i];
    if (fiber.state == State::kDone) {
      some_done = true;
    } else if (!first) {
      first = &fiber;
    } else if (!(fiber.place == first->place)) {
      fail("threadgroup_barrier divergence: " + describe(*first) + " waits at " + place(*first) + ", " +
           describe(fiber) + " at " + place(fiber));
      return false;
    }
  }
  if (!first) return false;
  if (some_done) {
    ++launch_.diverged;
    const std::string message = place(*first) +
                                ": threadgroup_barrier although some threads of the threadgroup have returned (" +
                                describe(*first) + " waits)";
    launch_.strict ? fail(message) : note(message);
    if (failed()) return false;
  }
  ++barriers_;
  for (uint32_t i = 0; i < count_; ++i) {
    if (fibers_[i].state == State::kAtBarrier) fibers_[i].state = State::kReady;
  }
  return true;
}

void Threadgroup::check_memory() {
  for (const auto& [id, variable] : variables_) {
    if (variable.threadgroup == number_ && !variable.memory.intact()) {
      fail("write past the end of threadgroup variable '" + std::string(variable.name) + "' (" +
           std::to_string(variable.memory.size()) + " bytes)");
    }
  }
  if (threadgroup_bytes_ > launch_.threadgroup_limit) {
    fail("threadgroup memory: " + std::to_string(threadgroup_bytes_) + " bytes, limit " +
         std::to_string(launch_.threadgroup_limit));
  }
}

void Threadgroup::wait(State state, const char* what, Place where) {
  fiber_->waits_for = what;
  fiber_->place = where;
  fiber_->state = state;
  leave();
}

void Threadgroup::call(mslrt_collective function, void* argument, const char* name, Place where) {
  fiber_->function = function;
  fiber_->argument = argument;
  // Registers are exchanged without ordering memory; only a barrier that is asked to orders it.
  const bool orders = std::strcmp(name, kSimdgroupBarrier) == 0 && *static_cast<const int*>(argument) != 0;
  const uint32_t simdgroup = fiber_->thread.index / kLanes % kLanes;
  void* const token = &simdgroup_tokens_[simdgroup][simdgroup_barriers_[simdgroup] % 2];
  if (orders) sanitizer::release(token);
  wait(State::kAtSimdgroupFunction, name, where);
  if (orders) sanitizer::acquire(token);
}

void Threadgroup::barrier(bool orders_memory, Place where) {
  void* const token = &barrier_tokens_[barriers_ % 2];
  if (orders_memory) sanitizer::release(token);
  wait(State::kAtBarrier, "threadgroup_barrier", where);
  if (orders_memory) sanitizer::acquire(token);
}

void* Threadgroup::variable(unsigned id, size_t size, const char* name) {
  // It is there, and NaN, before the threadgroup begins.
  const sanitizer::Thread own = sanitizer::current();
  sanitizer::change_to(sanitized_scheduler_);
  ThreadgroupVariable& variable = variables_[id];
  if (variable.memory.size() != size) variable.memory = GuardedMemory(size);
  if (variable.threadgroup != number_) {
    variable.threadgroup = number_;
    variable.name = name;
    std::memset(variable.memory.data(), 0xFF, size);
    threadgroup_bytes_ += (size + 15) / 16 * 16;
  }
  sanitizer::release(&begin_token_);
  sanitizer::change_to(own);
  sanitizer::acquire(&begin_token_);
  return variable.memory.data();
}

void Threadgroup::count_load(const char* address, size_t bytes) {
  for (const Region& region : regions_) {
    const char* const begin = region.memory->data();
    const size_t size = region.memory->size();
    if (address < begin || address >= begin + size) continue;
    std::vector<bool>& seen = loaded_[{fiber_->thread.index / kLanes, region.buffer}];
    if (seen.empty()) seen.resize(size);
    const auto first = static_cast<size_t>(address - begin);
    for (size_t i = first; i < std::min(first + bytes, size); ++i) {
      launch_.loaded[region.buffer] += !seen[i];
      seen[i] = true;
    }
  }
}

void Threadgroup::abandon(const std::string& message) {
  fail(message);
  ready_ = next_ = 0;
  leave();
  std::abort();
}

std::string Threadgroup::describe(const Fiber& fiber) const {
  const auto triple = [](const mslns::msl_position& p) {
    return "(" + std::to_string(p.x) + "," + std::to_string(p.y) + "," + std::to_string(p.z) + ")";
  };
  return "thread " + triple(fiber.thread.in_threadgroup) + " of threadgroup " + triple(fiber.thread.threadgroup);
}

std::string Threadgroup::describe(const char* address) const {
  const auto in = [&](const GuardedMemory& memory, const std::string& what) {
    return "byte " + std::to_string(address - memory.data()) + " of " + what + ", which has " +
           std::to_string(memory.size()) + " bytes";
  };
  if (address == nullptr) return "null, or a misaligned vector access";
  for (const Region& region : regions_) {
    if (region.memory->holds(address)) return in(*region.memory, "buffer(" + std::to_string(region.buffer) + ")");
  }
  for (const auto& [id, variable] : variables_) {
    if (variable.memory.holds(address)) {
      return in(variable.memory, "threadgroup variable '" + std::string(variable.name) + "'");
    }
  }
  if (fiber_ && address >= fiber_->stack && address < fiber_->stack + kPage) {
    return "the end of the thread's stack: it has too many variables";
  }
  return "outside every buffer";
}

// The first failure is kept.
void Threadgroup::fail(const std::string& message) {
  if (!failed()) std::snprintf(launch_.error, sizeof launch_.error, "%s", message.c_str());
}

void Threadgroup::note(const std::string& message) {
  if (!launch_.note[0]) std::snprintf(launch_.note, sizeof launch_.note, "%s", message.c_str());
}

}  // namespace fibers
