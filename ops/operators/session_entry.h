// Entries of a session's configuration that hold numbers.
#pragma once

#include <charconv>
#include <cstdlib>
#include <string>

#include "core/error.h"

namespace onnx_moe {

// A whole number from 1 to `most`; throws an Error that says the entry, its text and the remedy ("use ...").
inline int64_t parse_count(const char* entry, const std::string& text, int64_t most, const std::string& remedy) {
  int64_t count = 0;
  const char* const end = text.data() + text.size();
  const std::from_chars_result result = std::from_chars(text.data(), end, count);
  require(result.ec == std::errc() && result.ptr == end && count >= 1 && count <= most, "session entry ", entry,
          " is '", text, "': ", remedy);
  return count;
}

// A number from 0 to 1; throws likewise.
inline double parse_share(const char* entry, const std::string& text) {
  char* end = nullptr;
  const double share = std::strtod(text.c_str(), &end);
  require(end != text.c_str() && *end == '\0' && share >= 0 && share <= 1, "session entry ", entry, " is '", text,
          "': use a number from 0 to 1");
  return share;
}

}  // namespace onnx_moe
