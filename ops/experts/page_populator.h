// Has the system read mapped memory: told at once what is needed, and, by a thread, made to map it before it is
// touched.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>

namespace onnx_moe {

class PagePopulator {
 public:
  PagePopulator();
  // Drops what has not been populated.
  ~PagePopulator();
  PagePopulator(const PagePopulator&) = delete;
  PagePopulator& operator=(const PagePopulator&) = delete;

  // What the system answers changes nothing but the time that the first touch takes. Any thread.
  void will_need(const uint8_t* memory, int64_t bytes);

 private:
  struct Pages {
    uintptr_t begin;
    uintptr_t end;
  };

  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Pages> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace onnx_moe
