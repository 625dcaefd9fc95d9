#include "operators/session_log.h"

#include <map>

namespace onnx_moe {

std::shared_ptr<SessionLog> SessionLog::of(const ort::Logger& logger) {
  static std::mutex mutex;
  static std::map<const void*, std::weak_ptr<SessionLog>> logs;  // their sessions' kernels own them
  const std::lock_guard<std::mutex> lock(mutex);
  for (auto each = logs.begin(); each != logs.end();)
    each = each->second.expired() ? logs.erase(each) : std::next(each);
  std::shared_ptr<SessionLog> log = logs[logger.session()].lock();
  if (!log) {
    log = std::make_shared<SessionLog>(logger);
    logs[logger.session()] = log;
  }
  return log;
}

void SessionLog::warn_once(const std::string& message) {
  if (is_new(message)) logger_.warn(message);
}

void SessionLog::warn(const std::string& beginning, const std::string& reason, const std::string& in_short) {
  warn_once(beginning + (is_new(reason) ? reason : in_short));
}

bool SessionLog::is_new(const std::string& text) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return said_.insert(text).second;
}

}  // namespace onnx_moe
