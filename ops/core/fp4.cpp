#include "core/fp4.h"

#include "core/error.h"

namespace onnx_moe {

const char* format_name(Format format) {
  switch (format) {
    case Format::kMxfp4:
      return "mxfp4";
    case Format::kNvfp4:
      return "nvfp4";
    case Format::kFp4:
      return "fp4";
  }
  return "unknown";
}

BlockFormat make_block_format(Format format, int64_t block_size) {
  switch (format) {
    case Format::kMxfp4:
      require(block_size == 0 || block_size == 32, "block_size ", block_size,
              " is not mxfp4's: use 32, or leave it out");
      return {format, 32};
    case Format::kNvfp4:
      require(block_size == 0 || block_size == 16, "block_size ", block_size,
              " is not nvfp4's: use 16, or leave it out");
      return {format, 16};
    case Format::kFp4:
      require(block_size == 0 || block_size == 32 || block_size == 64 || block_size == 128, "block_size ", block_size,
              " is not fp4's: use 32, 64 or 128");
      return {format, block_size == 0 ? 128 : block_size};
  }
  fail("format number ", static_cast<int>(format), " is unknown");
}

}  // namespace onnx_moe
