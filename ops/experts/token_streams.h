// The last tokens of each sequence, as sets of experts: how much of a token's choice an earlier one had made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace onnx_moe {

// Of one layer. Tokens of a request follow each other in a prompt; in a decoding call, row r follows row r of the
// request's call before. The rows of a prompt are taken for one sequence (row 0), also where it is a batch.
class TokenStreams {
 public:
  static constexpr int64_t kLags = 16;
  // Sequences at once; the one that waited longest is forgotten when another begins.
  static constexpr size_t kStreams = 256;

  explicit TokenStreams(int64_t experts);

  // Adds a token, a set of experts as bits. For each lag up to the sequence's length and kLags, adds to shared[lag - 1]
  // the experts that the token has in common with the one `lag` before it, and 1 to tokens[lag - 1].
  void add(int32_t request, int64_t row, const uint64_t* experts, int64_t* shared, int64_t* tokens);

 private:
  struct Stream {
    int32_t request;
    int64_t row;
    int64_t length = 0;
    int64_t last_add = 0;
    std::vector<uint64_t> ring;  // [kLags, words]
  };

  Stream& find(int32_t request, int64_t row);

  int64_t words_;
  int64_t adds_ = 0;
  size_t last_ = 0;
  std::vector<Stream> streams_;
};

}  // namespace onnx_moe
