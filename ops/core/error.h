// The one exception of the core: a sentence for the user. The glue adds the node's name.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace onnx_moe {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

}  // namespace onnx_moe
