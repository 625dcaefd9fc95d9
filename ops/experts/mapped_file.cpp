#include "experts/mapped_file.h"

#if defined(__linux__)
#include <sys/sysmacros.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>
#endif

namespace onnx_moe {

#if defined(__linux__)

namespace {

// A line of /proc/self/maps: "start-end permissions offset major:minor inode   path".
struct Mapping {
  uint64_t start = 0;
  uint64_t end = 0;
  FileLocation file;
};

std::optional<Mapping> parse(const std::string& line) {
  Mapping mapping;
  uint64_t offset = 0;
  unsigned major_number = 0;
  unsigned minor_number = 0;
  int path_at = 0;
  const int fields =
      std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %*4s %" SCNx64 " %x:%x %" SCNu64 " %n", &mapping.start,
                  &mapping.end, &offset, &major_number, &minor_number, &mapping.file.inode, &path_at);
  if (fields != 6 || mapping.file.inode == 0 || path_at == 0) return std::nullopt;
  mapping.file.path = line.substr(static_cast<size_t>(path_at));
  mapping.file.device = makedev(major_number, minor_number);
  mapping.file.offset = static_cast<int64_t>(offset);
  return mapping;
}

}  // namespace

std::optional<FileLocation> locate_in_file(const void* memory, int64_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::optional<Mapping> mapping = parse(line);
    if (!mapping || address < mapping->start || address >= mapping->end) continue;
    if (address + static_cast<uint64_t>(bytes) > mapping->end) return std::nullopt;
    mapping->file.offset += static_cast<int64_t>(address - mapping->start);
    return mapping->file;
  }
  return std::nullopt;
}

#else

std::optional<FileLocation> locate_in_file(const void*, int64_t) { return std::nullopt; }

#endif

}  // namespace onnx_moe
