// How a function of the C API fails: the exception's text becomes the calling thread's last error.
#pragma once

#include <exception>
#include <new>
#include <string>

namespace onnx_moe {

inline std::string& last_error() {
  thread_local std::string message;
  return message;
}

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
