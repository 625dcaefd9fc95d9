// What Linux says of memory: /proc/meminfo and the control groups (version 2, or 1) that this process is in.
#include "experts/machine_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace onnx_moe {

namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

// A line "Name:   123 kB" of /proc/meminfo; 0 when it is not there.
int64_t meminfo(const std::string& name) {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, name.size() + 1, name + ":") == 0) return std::stoll(line.substr(name.size() + 1)) * 1024;
  }
  return 0;
}

// A control group's file: a number, or "max".
int64_t number_in(const std::string& path, int64_t otherwise) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : otherwise;
}

struct GroupMemory {
  int64_t limit = kUnlimited;
  int64_t left = kUnlimited;
};

void consider(GroupMemory& memory, const std::string& folder, const char* limit_file, const char* usage_file) {
  const int64_t limit = number_in(folder + limit_file, kUnlimited);
  memory.limit = std::min(memory.limit, limit);
  if (limit == kUnlimited) return;
  memory.left = std::min(memory.left, std::max<int64_t>(0, limit - number_in(folder + usage_file, 0)));
}

// Every group from this process's up to the root counts.
GroupMemory group_memory() {
  GroupMemory memory;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t path_at = line.rfind(':') + 1;
    const bool unified = line.compare(0, 3, "0::") == 0;
    if (!unified && line.find(":memory:") == std::string::npos) continue;
    const std::string root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    for (std::string path = line.substr(path_at);; path.erase(path.rfind('/'))) {
      const std::string folder = root + (path == "/" ? "" : path) + "/";
      if (unified) {
        consider(memory, folder, "memory.max", "memory.current");
      } else {
        consider(memory, folder, "memory.limit_in_bytes", "memory.usage_in_bytes");
      }
      if (path.empty() || path == "/") break;
    }
  }
  return memory;
}

}  // namespace

int64_t available_memory() { return std::min(meminfo("MemAvailable"), group_memory().left); }

int64_t total_memory() { return std::min(meminfo("MemTotal"), group_memory().limit); }

}  // namespace onnx_moe
