#include "experts/record_layout.h"

#include <algorithm>
#include <utility>

namespace onnx_moe {

namespace {

// Large enough for a disk's full rate (2 MB reads saturate it with two to four threads), and several to an expert, so
// that a single miss keeps all readers busy.
constexpr int64_t kPieceBytes = 2 * 1024 * 1024;

constexpr int64_t kPage = ExpertFile::kAlignment;

int64_t page_floor(int64_t offset) { return offset / kPage * kPage; }
int64_t page_ceiling(int64_t offset) { return page_floor(offset + kPage - 1); }

// Of an expert's part, with room for the pages' rests before and after it.
int64_t room_for(const ExpertTensor& tensor) {
  const bool aligned = tensor.file.offset % kPage == 0 && tensor.expert_bytes % kPage == 0;
  return page_ceiling(tensor.expert_bytes) + (aligned ? 0 : kPage);
}

const ExpertFile* open_once(const FileLocation& location, bool direct, RecordLayout::Files& files) {
  const auto known =
      std::find_if(files.begin(), files.end(), [&](const auto& file) { return file->path() == location.path; });
  if (known != files.end()) return known->get();
  files.push_back(std::make_unique<ExpertFile>(location, direct));
  return files.back().get();
}

}  // namespace

RecordLayout::RecordLayout(const ExpertLayer& layer, bool direct, Files& files) {
  int64_t in_slot = 0;
  layer.for_each_tensor([&](const ExpertTensor& tensor) {
    parts_.push_back({open_once(tensor.file, direct, files), tensor.file.offset, tensor.expert_bytes, in_slot});
    in_slot += room_for(tensor);
  });
}

int64_t RecordLayout::slot_bytes(const ExpertLayer& layer) {
  int64_t bytes = 0;
  layer.for_each_tensor([&](const ExpertTensor& tensor) { bytes += room_for(tensor); });
  return bytes;
}

std::vector<ReadPiece> RecordLayout::pieces(int64_t expert, uint8_t* slot) const {
  std::vector<ReadPiece> pieces;
  for (const Part& part : parts_) {
    const int64_t end = part.begin(expert) + part.bytes;
    const int64_t last_page = page_ceiling(end);
    uint8_t* target = slot + part.in_slot;
    for (int64_t offset = page_floor(part.begin(expert)); offset < last_page; offset += kPieceBytes) {
      const int64_t bytes = std::min(kPieceBytes, last_page - offset);
      pieces.push_back({part.file, offset, bytes, std::min(bytes, end - offset), target});
      target += bytes;
    }
  }
  return pieces;
}

ExpertData RecordLayout::in_slot(size_t projection, int64_t expert, const uint8_t* slot) const {
  const auto start = [&](const Part& part) { return slot + part.in_slot + part.begin(expert) % kPage; };
  return {start(parts_[2 * projection]), start(parts_[2 * projection + 1])};
}

}  // namespace onnx_moe
