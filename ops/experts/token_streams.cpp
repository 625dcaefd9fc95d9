#include "experts/token_streams.h"

#include <algorithm>

#include "experts/bit_set.h"

namespace onnx_moe {

TokenStreams::TokenStreams(int64_t experts) : words_(words_for(experts)) {}

void TokenStreams::add(int32_t request, int64_t row, const uint64_t* experts, int64_t* shared, int64_t* tokens) {
  Stream& stream = find(request, row);
  const int64_t reach = std::min(kLags, stream.length);
  for (int64_t lag = 1; lag <= reach; ++lag) {
    const uint64_t* earlier = stream.ring.data() + (stream.length - lag) % kLags * words_;
    shared[lag - 1] += count_shared(experts, earlier, words_);
    ++tokens[lag - 1];
  }
  std::copy_n(experts, words_, stream.ring.data() + stream.length % kLags * words_);
  ++stream.length;
  stream.last_add = ++adds_;
}

TokenStreams::Stream& TokenStreams::find(int32_t request, int64_t row) {
  // A batch comes row by row, so the stream is the last one or the next.
  for (size_t i = 0; i < streams_.size(); ++i) {
    const size_t index = (last_ + i) % streams_.size();
    if (streams_[index].request == request && streams_[index].row == row) {
      last_ = index;
      return streams_[index];
    }
  }
  if (streams_.size() < kStreams) {
    last_ = streams_.size();
    streams_.push_back({request, row, 0, 0, std::vector<uint64_t>(static_cast<size_t>(kLags * words_))});
    return streams_.back();
  }
  const auto oldest = std::min_element(streams_.begin(), streams_.end(),
                                       [](const Stream& a, const Stream& b) { return a.last_add < b.last_add; });
  last_ = static_cast<size_t>(oldest - streams_.begin());
  oldest->request = request;
  oldest->row = row;
  oldest->length = 0;
  return *oldest;
}

}  // namespace onnx_moe
