// The files behind memory that ONNX Runtime mapped: where initializers of external data lie on the disk.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace onnx_moe {

struct FileLocation {
  std::string path;
  uint64_t inode;
  int64_t offset;
};

// This process's mappings of files as they were when this was made; none where the system does not tell.
class FileMappings {
 public:
  FileMappings();

  // Nothing when the memory is not, as a whole, a mapping of one file.
  std::optional<FileLocation> locate(const void* memory, int64_t bytes) const;

 private:
  struct Mapping {
    uint64_t start;
    uint64_t end;
    FileLocation file;  // of `start`
  };

  static std::optional<Mapping> parse(const std::string& line);

  std::vector<Mapping> mappings_;
};

}  // namespace onnx_moe
