#include "experts/routing_sketch.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <map>
#include <utility>

#include "core/error.h"
#include "experts/bit_set.h"

namespace onnx_moe {

namespace {

// Tokens of a call that are set against those of the layers before.
constexpr int64_t kRelatedTokens = 4096;
// Of a layer's calls, every how many is set against all layers before; the layer right before is, in every call.
constexpr int64_t kComparedCalls = 8;
constexpr int64_t kGapBins = 32;  // bin b: gaps of [2^b, 2^(b + 1)) tokens
// Of a layer: pairs of experts are counted in 32 bits.
constexpr int64_t kMaxTokens = std::numeric_limits<uint32_t>::max();
// Requests that are told apart; more of them count as this many.
constexpr size_t kMaxRequests = size_t{1} << 20;

int64_t log2_floor(int64_t value) {
  int64_t bits = 0;
  while (value >>= 1) ++bits;
  return std::min(bits, kGapBins - 1);
}

size_t product(std::initializer_list<int64_t> sizes) {
  size_t total = 1;
  for (const int64_t size : sizes) total *= static_cast<size_t>(size);
  return total;
}

}  // namespace

struct RoutingSketch::Call {
  int64_t layer;
  uint8_t phase;
  int32_t request;
  int64_t tokens;
  const int32_t* experts;
  const float* weights;        // or null
  const float* probabilities;  // or null

  size_t at(const ExpertBank& bank) const { return static_cast<size_t>(phase * bank.layers + layer); }
};

RoutingSketch::RoutingSketch(const ExpertBank& bank, int64_t top_k)
    : bank_(bank),
      top_k_(top_k),
      words_(words_for(bank.experts)),
      calls_(product({kPhases, bank.layers})),
      tokens_(calls_.size()),
      rank_counts_(product({kPhases, bank.size(), top_k})),
      lag_shared_(product({kPhases, bank.layers, TokenStreams::kLags})),
      lag_tokens_(lag_shared_.size()),
      gaps_(product({kPhases, bank.layers, kGapBins})),
      stack_distances_(product({kPhases, bank.size() + 1})),
      probability_tokens_(calls_.size()),
      first_use_(product({bank.size()}), -1),
      transition_tokens_(product({bank.layers})),
      layer_shared_(product({bank.layers, bank.layers})),
      layer_tokens_(layer_shared_.size()),
      layer_sizes_(layer_shared_.size()),
      weighted_uses_(product({kPhases, bank.size()})),
      mass_(product({kPhases, bank.size()})),
      mass_squares_(mass_.size()),
      probability_sums_(mass_.size()),
      pairs_(product({bank.size(), bank.experts})),
      transitions_(pairs_.size()),
      windows_(bank, kPhases),
      last_token_(product({bank.size()}), -1),
      last_lookup_(last_token_.size(), -1),
      last_calls_(product({bank.layers})),
      streams_(product({bank.layers}), TokenStreams(bank.experts)),
      stack_(bank.size()),
      set_(product({words_})) {}

void check_sketch_sizes(const ExpertBank& bank, int64_t top_k) {
  require(bank.layers >= 1 && bank.experts >= 1 && top_k >= 1 && top_k <= bank.experts, "a sketch of ", bank.layers,
          " layers, ", bank.experts, " experts and top-", top_k,
          " cannot be: all must be at least 1, and top_k at most the number of experts");
}

void RoutingSketch::check(const TracedCalls& calls) const {
  std::vector<int64_t> tokens(static_cast<size_t>(bank_.layers), 0);
  for (int64_t call = 0; call < calls.calls; ++call) {
    const int32_t layer = calls.layers[call];
    require(layer >= 0 && layer < bank_.layers, "call ", call, " is of layer ", layer,
            ", but layers are numbered 0 to ", bank_.layers - 1);
    require(calls.phases[call] < kPhases, "call ", call, " has phase ", static_cast<int>(calls.phases[call]),
            ": use 0 (prefill) or 1 (decode)");
    const int64_t ids = calls.offsets[call + 1] - calls.offsets[call];
    require(ids >= 0 && ids % top_k_ == 0, "call ", call, " holds ", ids, " expert ids: tokens choose ", top_k_,
            " each");
    tokens[static_cast<size_t>(layer)] += ids / top_k_;
    for (int64_t i = calls.offsets[call]; i < calls.offsets[call + 1]; ++i) {
      require(calls.experts[i] >= 0 && calls.experts[i] < bank_.experts, "call ", call, " holds expert ",
              calls.experts[i], ", but experts are numbered 0 to ", bank_.experts - 1);
    }
  }
  for (size_t layer = 0; layer < tokens.size(); ++layer) {
    const int64_t before = tokens_[layer] + tokens_[layer + tokens.size()];
    require(before + tokens[layer] <= kMaxTokens, "layer ", layer, " would have ", before + tokens[layer],
            " tokens, but a profile holds ", kMaxTokens, ": begin another and merge them");
  }
}

void RoutingSketch::add(const TracedCalls& calls) {
  check(calls);
  if (calls.probabilities && windows_.probabilities.empty()) windows_.keep_probabilities();
  int64_t tokens_before = 0;
  for (int64_t index = 0; index < calls.calls; ++index) {
    const int64_t begin = calls.offsets[index];
    const int64_t tokens = (calls.offsets[index + 1] - begin) / top_k_;
    add_call({calls.layers[index], calls.phases[index], calls.requests[index], tokens, calls.experts + begin,
              calls.weights ? calls.weights + begin : nullptr,
              calls.probabilities ? calls.probabilities + tokens_before * bank_.experts : nullptr});
    tokens_before += tokens;
  }
}

void RoutingSketch::add_call(const Call& call) {
  ++calls_[call.at(bank_)];
  if (requests_.size() < kMaxRequests) requests_.insert(call.request);
  requests_column_[0] = static_cast<int64_t>(requests_.size());
  for (int64_t token = 0; token < call.tokens; ++token) count_token(call, token);
  relate_to_earlier_layers(call);
  look_up(call);
}

void RoutingSketch::count_token(const Call& call, int64_t token) {
  const int32_t* experts = call.experts + token * top_k_;
  const float* weights = call.weights ? call.weights + token * top_k_ : nullptr;
  const int64_t window = windows_.window_of(call.phase, tokens_[call.at(bank_)]);
  const int64_t keys_before = call.phase * bank_.size();
  std::fill(set_.begin(), set_.end(), 0);
  for (int64_t rank = 0; rank < top_k_; ++rank) {
    const int64_t key = bank_.key(call.layer, experts[rank]);
    const double weight = weights ? static_cast<double>(weights[rank]) : 0.0;
    ++rank_counts_[static_cast<size_t>((keys_before + key) * top_k_ + rank)];
    if (weights) ++weighted_uses_[static_cast<size_t>(keys_before + key)];
    mass_[static_cast<size_t>(keys_before + key)] += weight;
    mass_squares_[static_cast<size_t>(keys_before + key)] += weight * weight;
    windows_.choose(call.phase, window, key, weight);
    set_[static_cast<size_t>(experts[rank] / kBitsOfWord)] |= uint64_t{1} << (experts[rank] % kBitsOfWord);
  }
  count_pairs(call.layer, experts);
  count_gaps(call, experts);
  if (call.probabilities) count_probabilities(call, token, window);
  const size_t lags = call.at(bank_) * TokenStreams::kLags;
  const int64_t row = call.phase == static_cast<uint8_t>(RoutingPhase::kDecode) ? token : 0;
  streams_[static_cast<size_t>(call.layer)].add(call.request, row, set_.data(), &lag_shared_[lags], &lag_tokens_[lags]);
  ++tokens_[call.at(bank_)];
}

void RoutingSketch::count_pairs(int64_t layer, const int32_t* experts) {
  uint32_t* pairs = pairs_.data() + bank_.key(layer, 0) * bank_.experts;
  for (int64_t i = 0; i < top_k_; ++i) {
    uint32_t* row = pairs + experts[i] * bank_.experts;
    for (int64_t j = i + 1; j < top_k_; ++j) ++row[experts[j]];
  }
}

void RoutingSketch::count_gaps(const Call& call, const int32_t* experts) {
  const auto layer = static_cast<size_t>(call.layer);
  const int64_t now = tokens_[layer] + tokens_[layer + static_cast<size_t>(bank_.layers)];
  for (int64_t rank = 0; rank < top_k_; ++rank) {
    const auto key = static_cast<size_t>(bank_.key(call.layer, experts[rank]));
    if (last_token_[key] < 0) first_use_[key] = now;
    if (last_token_[key] >= 0 && last_token_[key] < now) {
      ++gaps_[call.at(bank_) * kGapBins + static_cast<size_t>(log2_floor(now - last_token_[key]))];
    }
    last_token_[key] = now;
  }
}

void RoutingSketch::count_probabilities(const Call& call, int64_t token, int64_t window) {
  const float* probabilities = call.probabilities + token * bank_.experts;
  for (int64_t expert = 0; expert < bank_.experts; ++expert) {
    const int64_t key = bank_.key(call.layer, expert);
    const auto probability = static_cast<double>(probabilities[expert]);
    probability_sums_[static_cast<size_t>(call.phase * bank_.size() + key)] += probability;
    windows_.add_probability(call.phase, window, key, probability);
  }
  ++probability_tokens_[call.at(bank_)];
}

void RoutingSketch::relate_to_earlier_layers(const Call& call) {
  LastCall& now = last_calls_[static_cast<size_t>(call.layer)];
  const int64_t before = now.number;
  now.number = calls_seen_++;
  now.request = call.request;
  now.phase = call.phase;
  now.tokens = call.tokens;
  const int64_t related = std::min(call.tokens, kRelatedTokens);
  now.experts.assign(call.experts, call.experts + related * top_k_);
  now.sets.assign(static_cast<size_t>(related * words_), 0);
  for (int64_t i = 0; i < related * top_k_; ++i) {
    const int64_t word = i / top_k_ * words_ + call.experts[i] / kBitsOfWord;
    now.sets[static_cast<size_t>(word)] |= uint64_t{1} << (call.experts[i] % kBitsOfWord);
  }
  const auto at = static_cast<size_t>(call.layer);
  const bool compared = (calls_[at] + calls_[at + static_cast<size_t>(bank_.layers)]) % kComparedCalls == 1;
  for (int64_t layer = compared ? 0 : std::max<int64_t>(call.layer - 1, 0); layer < call.layer; ++layer) {
    const LastCall& earlier = last_calls_[static_cast<size_t>(layer)];
    const bool same_pass = earlier.number > before && earlier.request == now.request && earlier.phase == now.phase &&
                           earlier.tokens == now.tokens;
    if (!same_pass) continue;
    if (compared) {
      const auto pair = static_cast<size_t>(layer * bank_.layers + call.layer);
      layer_shared_[pair] += count_shared(earlier.sets.data(), now.sets.data(), related * words_);
      layer_tokens_[pair] += related;
      // Of tokens that chose an expert twice, less than top_k.
      layer_sizes_[pair] += count_shared(earlier.sets.data(), earlier.sets.data(), related * words_);
      layer_sizes_[static_cast<size_t>(call.layer * bank_.layers + layer)] +=
          count_shared(now.sets.data(), now.sets.data(), related * words_);
    }
    if (layer + 1 == call.layer) count_transitions(earlier, now, call.layer);
  }
}

void RoutingSketch::count_transitions(const LastCall& from, const LastCall& to, int64_t layer) {
  uint32_t* table = transitions_.data() + bank_.key(layer, 0) * bank_.experts;
  const auto ids = static_cast<int64_t>(to.experts.size());
  for (int64_t token = 0; token < ids; token += top_k_) {
    for (int64_t i = token; i < token + top_k_; ++i) {
      uint32_t* row = table + from.experts[static_cast<size_t>(i)] * bank_.experts;
      for (int64_t j = token; j < token + top_k_; ++j) ++row[to.experts[static_cast<size_t>(j)]];
    }
  }
  transition_tokens_[static_cast<size_t>(layer)] += ids / top_k_;
}

void RoutingSketch::look_up(const Call& call) {
  // As a cache sees it: what is there when the call begins, once for each of its experts.
  int64_t* distances = stack_distances_.data() + call.phase * (bank_.size() + 1);
  distinct_keys_.clear();
  ++lookups_;
  for (int64_t i = 0; i < call.tokens * top_k_; ++i) {
    const int64_t key = bank_.key(call.layer, call.experts[i]);
    int64_t& last = last_lookup_[static_cast<size_t>(key)];
    if (last == lookups_) continue;
    last = lookups_;
    distinct_keys_.push_back(key);
    const int64_t distance = stack_.of(key);
    ++distances[distance == StackDistance::kNeverUsed ? bank_.size() : distance];
  }
  for (const int64_t key : distinct_keys_) stack_.use(key);
}

RoutingSketch::Column RoutingSketch::column(const std::string& name) const {
  const std::map<std::string, Column> columns = {
      {"calls", &calls_},
      {"tokens", &tokens_},
      {"requests", &requests_column_},
      {"rank_counts", &rank_counts_},
      {"mass", &mass_},
      {"mass_squares", &mass_squares_},
      {"probability_tokens", &probability_tokens_},
      {"probability_sums", &probability_sums_},
      {"first_use", &first_use_},
      {"pairs", &pairs_},
      {"transitions", &transitions_},
      {"transition_tokens", &transition_tokens_},
      {"layer_shared", &layer_shared_},
      {"layer_tokens", &layer_tokens_},
      {"layer_sizes", &layer_sizes_},
      {"weighted_uses", &weighted_uses_},
      {"lag_shared", &lag_shared_},
      {"lag_tokens", &lag_tokens_},
      {"gaps", &gaps_},
      {"stack_distances", &stack_distances_},
      {"window_tokens", &windows_.tokens_of_window},
      {"window_counts", &windows_.counts},
      {"window_mass", &windows_.mass},
      {"window_probabilities", &windows_.probabilities},
  };
  const auto entry = columns.find(name);
  require(entry != columns.end(), "a sketch has no column '", name, "'");
  return entry->second;
}

}  // namespace onnx_moe
