// A file of experts as ONNX Runtime maps it, for the drivers. Every byte of an expert is its mark, which says whose it
// is, so that a slot which is reused too early, or read into late, shows in what a call sees.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/error.h"
#include "experts/residency_engine.h"

namespace onnx_moe {

struct ModelShape {
  int64_t layers;
  int64_t experts;
  int64_t top_k;
  int64_t code_bytes;
  int64_t scale_bytes;
  int64_t first_mark = 1;

  int64_t layer_bytes() const { return experts * (code_bytes + scale_bytes); }
  uint8_t mark(int64_t layer, int64_t expert) const {
    return static_cast<uint8_t>(first_mark + layer * experts + expert);
  }
};

inline void write_model(const char* path, const ModelShape& shape) {
  std::ofstream file(path, std::ios::binary);
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    for (const int64_t bytes : {shape.code_bytes, shape.scale_bytes}) {
      for (int64_t expert = 0; expert < shape.experts; ++expert) {
        file << std::string(static_cast<size_t>(bytes), static_cast<char>(shape.mark(layer, expert)));
      }
    }
  }
}

class MappedModel {
 public:
  MappedModel(const char* path, const ModelShape& shape)
      : shape_(shape), bytes_(static_cast<size_t>(shape.layers * shape.layer_bytes())) {
    const int descriptor = ::open(path, O_RDONLY);
    memory_ = ::mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    ::close(descriptor);
    if (memory_ == MAP_FAILED) fail("cannot map ", path);
  }
  ~MappedModel() { ::munmap(memory_, bytes_); }
  MappedModel(const MappedModel&) = delete;
  MappedModel& operator=(const MappedModel&) = delete;

  const uint8_t* codes(int64_t layer) const {
    return static_cast<const uint8_t*>(memory_) + layer * shape_.layer_bytes();
  }
  const uint8_t* scales(int64_t layer) const { return codes(layer) + shape_.experts * shape_.code_bytes; }

  void add_layer(ResidencyEngine& engine, int64_t layer) const {
    ExpertLayer described{"layer", shape_.experts, shape_.top_k, {}};
    described.projections.push_back(
        {{"weights", codes(layer), shape_.code_bytes}, {"scales", scales(layer), shape_.scale_bytes}});
    engine.add_layer(std::move(described));
  }
  void add_layers(ResidencyEngine& engine) const {
    for (int64_t layer = 0; layer < shape_.layers; ++layer) add_layer(engine, layer);
  }

 private:
  ModelShape shape_;
  size_t bytes_;
  void* memory_;
};

}  // namespace onnx_moe
