// What a session's log has been told: a reason that many nodes share, once.
#pragma once

#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "ort/api.h"

namespace onnx_moe {

class SessionLog {
 public:
  explicit SessionLog(const ort::Logger& logger) : logger_(logger) {}

  // The session's: the one that its other kernels hold, or a new one.
  static std::shared_ptr<SessionLog> of(const ort::Logger& logger);

  // Safe from any thread. Nothing the second time.
  void warn_once(const std::string& message);
  // `reason` in full the first time, and after later beginnings as what it is in short.
  void warn(const std::string& beginning, const std::string& reason, const std::string& in_short);

 private:
  bool is_new(const std::string& text);

  ort::Logger logger_;
  std::mutex mutex_;
  std::set<std::string> said_;
};

}  // namespace onnx_moe
