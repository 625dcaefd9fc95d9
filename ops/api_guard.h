// What every function of the C API runs in: exceptions become error texts of the calling thread.
#pragma once

#include <exception>
#include <new>
#include <string>

namespace onnx_moe {

inline std::string& last_error() {
  thread_local std::string message;
  return message;
}

// 0, or 1 and a sentence in last_error().
template <typename Body>
int guarded(Body&& body) {
  try {
    last_error().clear();
    body();
    return 0;
  } catch (const std::bad_alloc&) {
    last_error() = "out of memory";
  } catch (const std::exception& error) {
    last_error() = error.what();
  }
  return 1;
}

}  // namespace onnx_moe
