// The file behind memory that ONNX Runtime mapped: where an initializer of external data lies on the disk.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace onnx_moe {

struct FileLocation {
  std::string path;
  uint64_t device;
  uint64_t inode;
  int64_t offset;
};

// Nothing when the memory is not (as a whole) a mapping of one file, or when this system does not tell.
std::optional<FileLocation> locate_in_file(const void* memory, int64_t bytes);

}  // namespace onnx_moe
