#include "experts/mapped_file.h"

#include <cinttypes>
#include <cstdio>
#include <fstream>

namespace onnx_moe {

// Linux alone has this file; elsewhere there is nothing to read.
FileMappings::FileMappings() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (const std::optional<Mapping> mapping = parse(line)) mappings_.push_back(*mapping);
  }
}

// "start-end permissions offset device inode   path"; memory that is no file's has inode 0.
std::optional<FileMappings::Mapping> FileMappings::parse(const std::string& line) {
  Mapping mapping{};
  uint64_t offset = 0;
  int path_at = 0;
  const int fields = std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %*4s %" SCNx64 " %*s %" SCNu64 " %n",
                                 &mapping.start, &mapping.end, &offset, &mapping.file.inode, &path_at);
  if (fields != 4 || mapping.file.inode == 0 || path_at == 0) return std::nullopt;
  mapping.file.path = line.substr(static_cast<size_t>(path_at));
  mapping.file.offset = static_cast<int64_t>(offset);
  return mapping;
}

std::optional<FileLocation> FileMappings::locate(const void* memory, int64_t bytes) const {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  for (const Mapping& mapping : mappings_) {
    if (address < mapping.start || address >= mapping.end) continue;
    if (address + static_cast<uint64_t>(bytes) > mapping.end) return std::nullopt;
    FileLocation location = mapping.file;
    location.offset += static_cast<int64_t>(address - mapping.start);
    return location;
  }
  return std::nullopt;
}

}  // namespace onnx_moe
