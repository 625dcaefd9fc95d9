// Where the parts of an expert lie in a slot. A part keeps its file offset's place within a page, so that whole pages
// can be read straight into the slot.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "experts/expert_file.h"
#include "experts/expert_layer.h"
#include "experts/reader_pool.h"

namespace onnx_moe {

class RecordLayout {
 public:
  using Files = std::vector<std::unique_ptr<ExpertFile>>;

  // Takes the layer's files from `files`, or opens them there.
  RecordLayout(const ExpertLayer& layer, bool direct, Files& files);

  // Of a slot for the layer's experts.
  static int64_t slot_bytes(const ExpertLayer& layer);

  // The reads that bring `expert` into `slot`.
  std::vector<ReadPiece> pieces(int64_t expert, uint8_t* slot) const;
  // Where a projection of `expert` is then.
  ExpertData in_slot(size_t projection, int64_t expert, const uint8_t* slot) const;

 private:
  struct Part {
    const ExpertFile* file;
    int64_t offset;  // of expert 0, in the file
    int64_t bytes;   // of an expert
    int64_t in_slot;

    int64_t begin(int64_t expert) const { return offset + expert * bytes; }
  };

  std::vector<Part> parts_;  // codes and scales of each projection
};

}  // namespace onnx_moe
