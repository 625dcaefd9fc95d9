// What a routing profile is made from: counts of a fixed size, whatever the number of tokens that were seen.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_set>
#include <variant>
#include <vector>

#include "experts/bank.h"
#include "experts/routing_recorder.h"
#include "experts/stack_distance.h"
#include "experts/token_streams.h"
#include "experts/window_counts.h"

namespace onnx_moe {

// Calls of routers in the order of their execution. Call c is of layers[c] and chose experts[offsets[c]] …, top_k ids a
// token, best first.
struct TracedCalls {
  int64_t calls;
  const int32_t* layers;
  const uint8_t* phases;
  const int32_t* requests;
  const int64_t* offsets;
  const int32_t* experts;
  const float* weights;        // of the experts, or null
  const float* probabilities;  // [tokens of all calls, experts], before top-k; or null
};

// Throws an Error for sizes that cannot be.
void check_sketch_sizes(const ExpertBank& bank, int64_t top_k);

class RoutingSketch {
 public:
  // Sizes must be checked.
  RoutingSketch(const ExpertBank& bank, int64_t top_k);

  // Throws an Error, and changes nothing, where the calls are not what the bank has.
  void add(const TracedCalls& calls);

  // The counts by name, row by row; see onnx_moe.h. Throws an Error for a name that there is not.
  using Column = std::variant<const std::vector<int64_t>*, const std::vector<uint32_t>*, const std::vector<double>*>;
  Column column(const std::string& name) const;

 private:
  // What stays of a layer's last call, for the layers that come after it.
  struct LastCall {
    int64_t number = -1;  // among all calls
    int32_t request = 0;
    uint8_t phase = 0;
    int64_t tokens = 0;
    std::vector<int32_t> experts;  // of the first tokens of a long prompt, as the next
    std::vector<uint64_t> sets;
  };
  struct Call;

  void check(const TracedCalls& calls) const;
  void add_call(const Call& call);
  void count_token(const Call& call, int64_t token);
  void count_pairs(int64_t layer, const int32_t* experts);
  void count_gaps(const Call& call, const int32_t* experts);
  void count_probabilities(const Call& call, int64_t token, int64_t window);
  void relate_to_earlier_layers(const Call& call);
  void count_transitions(const LastCall& from, const LastCall& to, int64_t layer);
  void look_up(const Call& call);

  ExpertBank bank_;
  int64_t top_k_;
  int64_t words_;  // of a set of experts
  int64_t calls_seen_ = 0;
  int64_t lookups_ = 0;

  // The columns, whose shapes and meanings are in onnx_moe.h.
  std::vector<int64_t> calls_, tokens_, rank_counts_, lag_shared_, lag_tokens_, gaps_, stack_distances_;
  std::vector<int64_t> probability_tokens_, first_use_, transition_tokens_, layer_shared_, layer_tokens_;
  std::vector<int64_t> layer_sizes_, weighted_uses_;
  std::vector<int64_t> requests_column_ = {0};
  std::vector<double> mass_, mass_squares_, probability_sums_;
  std::vector<uint32_t> pairs_, transitions_;
  WindowCounts windows_;

  std::vector<int64_t> last_token_;    // by key: the last token of the layer that chose it; -1 before
  std::vector<int64_t> last_lookup_;   // by key
  std::vector<LastCall> last_calls_;   // by layer
  std::vector<TokenStreams> streams_;  // by layer
  StackDistance stack_;
  std::vector<uint64_t> set_;           // of the token at hand
  std::vector<int64_t> distinct_keys_;  // of the call at hand
  std::unordered_set<int32_t> requests_;
};

}  // namespace onnx_moe
