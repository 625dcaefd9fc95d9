// What the core asks of its host: threads and scratch memory. ONNX Runtime's own serve inside a session.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <type_traits>

namespace onnx_moe {

class Host {
 public:
  using Task = void (*)(void* state, size_t index);

  virtual ~Host() = default;
  virtual void parallel_for(Task task, void* state, size_t count) = 0;
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory) = 0;
};

// Runs body(i) for i in [0, count) on the host's threads; the first exception is rethrown here.
template <typename Body>
void parallel_for(Host& host, int64_t count, Body&& body) {
  if (count <= 0) return;
  if (count == 1) return body(int64_t{0});
  struct State {
    std::remove_reference_t<Body>* body;
    std::mutex mutex;
    std::exception_ptr error;
  } state{&body, {}, nullptr};
  host.parallel_for(
      [](void* opaque, size_t index) {
        auto& shared = *static_cast<State*>(opaque);
        try {
          (*shared.body)(static_cast<int64_t>(index));
        } catch (...) {
          const std::lock_guard<std::mutex> lock(shared.mutex);
          if (!shared.error) shared.error = std::current_exception();
        }
      },
      &state, static_cast<size_t>(count));
  if (state.error) std::rethrow_exception(state.error);
}

// Scratch memory of the host, 64-byte aligned, for the length of a call.
template <typename T>
class Scratch {
 public:
  Scratch(Host& host, int64_t count) : host_(host) {
    constexpr size_t kAlignment = 64;
    memory_ = host.allocate(static_cast<size_t>(count) * sizeof(T) + kAlignment);
    if (!memory_) throw std::bad_alloc();
    const auto address = reinterpret_cast<uintptr_t>(memory_);
    data_ = reinterpret_cast<T*>((address + kAlignment - 1) & ~(kAlignment - 1));
  }
  ~Scratch() { host_.release(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* data() const { return data_; }
  T& operator[](int64_t index) const { return data_[index]; }

 private:
  Host& host_;
  void* memory_;
  T* data_;
};

}  // namespace onnx_moe
