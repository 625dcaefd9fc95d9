// A file that experts are read from.
#pragma once

#include <cstdint>
#include <string>

#include "experts/mapped_file.h"

namespace onnx_moe {

class ExpertFile {
 public:
  // Reads past the page cache ask for offsets, sizes and addresses that are multiples of this.
  static constexpr int64_t kAlignment = 4096;

  // Opens the file that is mapped: throws an Error when another one has taken its place. `direct`: try to read past the
  // page cache.
  ExpertFile(const FileLocation& mapped, bool direct);
  ~ExpertFile();
  ExpertFile(const ExpertFile&) = delete;
  ExpertFile& operator=(const ExpertFile&) = delete;

  const std::string& path() const { return path_; }
  bool direct() const { return direct_ >= 0; }

  // Reads whole pages from `offset` (a multiple of kAlignment) on to `target` (likewise), at least `needed` bytes of
  // the `bytes`, of which the file may end before the last. Throws an Error with path, offset and reason. Any thread.
  void read(int64_t offset, int64_t bytes, int64_t needed, uint8_t* target) const;

 private:
  void check_unchanged(int64_t offset) const;

  std::string path_;
  int buffered_ = -1;
  int direct_ = -1;
  int64_t size_ = 0;
  int64_t modified_ns_ = 0;
};

}  // namespace onnx_moe
