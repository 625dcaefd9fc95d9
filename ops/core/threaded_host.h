// The calling thread, further ones where a call is long enough to start them, and the C library's memory: for calls
// outside of any session.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <system_error>
#include <thread>
#include <vector>

#include "core/parallel.h"

namespace onnx_moe {

class ThreadedHost final : public Host {
 public:
  // At least 1; with 1, everything is on the calling thread.
  explicit ThreadedHost(int64_t threads = 1) : threads_(static_cast<size_t>(threads)) {}

  void parallel_for(Task task, void* state, size_t count) override {
    std::atomic<size_t> next{0};
    const auto work = [&] {
      for (size_t i = next++; i < count; i = next++) task(state, i);
    };
    std::vector<std::thread> others;
    try {
      for (size_t i = 1; i < std::min(threads_, count); ++i) others.emplace_back(work);
    } catch (const std::system_error&) {
      // The machine gives no more threads: those that there are do the work.
    }
    work();
    for (std::thread& other : others) other.join();
  }
  void* allocate(size_t bytes) override { return std::malloc(bytes); }
  void release(void* memory) override { std::free(memory); }

 private:
  size_t threads_;
};

}  // namespace onnx_moe
