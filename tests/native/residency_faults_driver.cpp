// Reads and mappings that fail as they may on a real machine: pread and mmap are this file's. After each failure the
// session must compute again. Built by test_residency_faults.py.
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <sys/syscall.h>

#include "residency_model.h"

namespace {

std::atomic<int> failing_read{0};  // an errno; 0: none
std::atomic<bool> short_reads{false};
std::atomic<bool> interrupted{false};
std::atomic<bool> ends_early{false};
std::atomic<bool> no_memory{false};
std::atomic<bool> slow{false};

}  // namespace

extern "C" ssize_t pread(int descriptor, void* target, size_t bytes, off_t offset) {
  thread_local int calls = 0;
  if (const int error = failing_read.load()) {
    errno = error;
    return -1;
  }
  if (interrupted && ++calls % 2 == 1) {
    errno = EINTR;
    return -1;
  }
  if (ends_early) return 0;
  // Some reads only, so that one that nobody wants any more ends after those that were begun later.
  if (slow && ++calls % 3 != 0) std::this_thread::sleep_for(std::chrono::milliseconds(calls % 3));
  if (short_reads && bytes > 4096) bytes = 4096;
  return ::syscall(SYS_pread64, descriptor, target, bytes, offset);
}

extern "C" void* mmap(void* address, size_t bytes, int protection, int flags, int descriptor, off_t offset) {
  if (no_memory && (flags & MAP_ANONYMOUS) != 0) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  return reinterpret_cast<void*>(::syscall(SYS_mmap, address, bytes, protection, flags, descriptor, offset));
}

namespace {

using namespace onnx_moe;

constexpr ModelShape kShape{3, 12, 2, 9000, 300};
// Slots of 24 KiB for two experts of each layer, one that bypasses the cache, and two that are read ahead.
constexpr const char* kLeastBudget = "216KiB";

// "right", "wrong", or what it threw.
std::string call(ResidencyEngine& engine, int64_t layer, const std::vector<int32_t>& ids) {
  try {
    const std::unique_ptr<ExpertSource> source = engine.open(layer, ids.data(), static_cast<int64_t>(ids.size()));
    size_t seen = 0;
    for (ExpertSet set = source->next(); set.count > 0; set = source->next()) {
      for (int64_t i = 0; i < set.count; ++i, ++seen) {
        const uint8_t* const codes = source->resident(0)[set.experts[i]].codes;
        const auto expected = static_cast<char>(kShape.mark(layer, set.experts[i]));
        const std::string right(static_cast<size_t>(kShape.code_bytes), expected);
        if (std::memcmp(codes, right.data(), right.size()) != 0) return "wrong";
      }
    }
    return seen == ids.size() ? "right" : "wrong";
  } catch (const Error& error) {
    return error.what();
  }
}

template <typename Fault, typename Value>
void with(const char* name, ResidencyEngine& engine, Fault& fault, Value value, int32_t expert) {
  fault = value;
  const std::string during = call(engine, 1, {expert, 5});
  fault = Value{};
  std::printf("%s: %s\n", name, during.c_str());
  std::printf("after %s: %s\n", name, call(engine, 1, {expert, 5}).c_str());
}

// A call that ends before any slot was free for what had been read ahead for it: every slot is another call's.
void end_early(const MappedModel& model, ResidencyOptions options) {
  options.prefetch = PrefetchSignalKind::kNextGate;
  options.budget = CacheBudget::parse(kLeastBudget);
  ResidencyEngine engine(options);
  for (int64_t layer = 0; layer < kShape.layers; ++layer) {
    engine.add_router({}, true);
    model.add_layer(engine, layer);
  }
  std::vector<std::unique_ptr<ExpertSource>> holders;
  const std::vector<int32_t> held{0, 1}, foreseen{5, 6};
  for (int64_t layer = 0; layer < kShape.layers; ++layer) holders.push_back(engine.open(layer, held.data(), 2));
  engine.next_gate_chose(0, foreseen.data(), 2);
  const std::string before = call(engine, 0, held);
  engine.open(1, foreseen.data(), 2);
  holders.clear();
  std::printf("a call that ended early: %s\n", call(engine, 1, foreseen).c_str());
  std::printf("the call before it: %s\n%s\n", before.c_str(), engine.statistics().to_json().c_str());
}

}  // namespace

int main(int, char** arguments) {
  write_model(arguments[1], kShape);
  const MappedModel model(arguments[1], kShape);
  ResidencyOptions options;
  options.mode = ResidencyMode::kPool;
  options.budget = CacheBudget::parse("60%");
  options.direct_io = DirectIo::kOff;
  {
    ResidencyEngine engine(options);
    model.add_layers(engine);
    engine.mode();
    with("no memory", engine, no_memory, true, 0);
    with("EIO", engine, failing_read, EIO, 1);
    with("short reads", engine, short_reads, true, 2);
    with("EINTR", engine, interrupted, true, 3);
    with("early end", engine, ends_early, true, 4);
    std::printf("%s\n", engine.statistics().to_json().c_str());
  }
  // Reads ahead that come too late, or for nothing, while their slots are wanted.
  slow = true;
  options.prefetch = PrefetchSignalKind::kCrossLayer;
  options.prefetch_precision = 0;
  options.budget = CacheBudget::parse("30%");
  ResidencyEngine engine(options);
  model.add_layers(engine);
  std::string verdict = "right";
  std::mt19937 random(1);
  for (int32_t token = 0; token < 100; ++token) {
    for (int64_t layer = 0; layer < kShape.layers; ++layer) {
      const auto expert = static_cast<int32_t>(random() % 12);
      const std::string result = call(engine, layer, {expert, (expert + 1) % 12});
      if (result != "right") verdict = result;
    }
  }
  std::printf("reading ahead: %s\n", verdict.c_str());
  std::printf("%s\n", engine.statistics().to_json().c_str());
  slow = false;
  end_early(model, options);
  return EXIT_SUCCESS;
}
