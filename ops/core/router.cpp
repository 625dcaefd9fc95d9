#include "core/router.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"

namespace onnx_moe {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Experts in a task of the logits' product: enough to give every core some at one token.
constexpr int64_t kExpertsPerTask = 16;
// Rows to a task when routing: selecting takes a few µs a row.
constexpr int64_t kTokensPerTask = 8;
// Rows to a task when multiplying with the gate.
constexpr int64_t kRowsPerTask = 64;
// Rows are padded with zeros to whole vectors of any kernel.
constexpr int64_t kRowPadding = 16;

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

void softmax(const float* logits, int64_t count, float* scores) {
  float largest = -kInfinity;
  for (int64_t i = 0; i < count; ++i) largest = logits[i] > largest ? logits[i] : largest;
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    scores[i] = std::exp(logits[i] - largest);
    sum += static_cast<double>(scores[i]);
  }
  const auto total = static_cast<float>(sum);
  for (int64_t i = 0; i < count; ++i) scores[i] /= total;
}

// Scores from logits; the logits themselves where scoring comes after the choice.
void score(Scoring scoring, const float* logits, int64_t count, float* scores) {
  switch (scoring) {
    case Scoring::kSoftmax:
      return softmax(logits, count, scores);
    case Scoring::kSigmoid:
      std::transform(logits, logits + count, scores, sigmoid);
      return;
    case Scoring::kSqrtSoftplus:
      std::transform(logits, logits + count, scores, [](float x) { return std::sqrt(softplus(x)); });
      return;
    case Scoring::kSoftmaxAfterTopK:
    case Scoring::kSigmoidAfterTopK:
      std::copy(logits, logits + count, scores);
      return;
  }
}

// Ids of the `k` highest keys, best first, ties to the lowest id: insertion into a sorted list of k.
void top_k_ids(const float* keys, int64_t count, int64_t k, int32_t* ids) {
  int64_t filled = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (filled == k && !(keys[i] > keys[ids[k - 1]])) continue;
    int64_t position = filled < k ? filled++ : k - 1;
    for (; position > 0 && keys[i] > keys[ids[position - 1]]; --position) ids[position] = ids[position - 1];
    ids[position] = static_cast<int32_t>(i);
  }
}

float group_score(GroupScoring scoring, const float* keys, int64_t count) {
  float best = -kInfinity;
  float second = -kInfinity;
  for (int64_t i = 0; i < count; ++i) {
    if (keys[i] > best) {
      second = best;
      best = keys[i];
    } else if (keys[i] > second) {
      second = keys[i];
    }
  }
  if (scoring == GroupScoring::kMax) return best;
  const float sum = best + second;
  return std::isnan(sum) ? -kInfinity : sum;  // an infinity and its opposite: the group comes last
}

// Working memory of one row.
struct RowBuffers {
  float* logits;
  float* scores;
  float* keys;
  float* groups;
  int32_t* chosen_groups;
};

void keep_best_groups(const RouterAttributes& attributes, int64_t num_experts, const RowBuffers& buffers) {
  const int64_t size = num_experts / attributes.num_groups;
  for (int64_t g = 0; g < attributes.num_groups; ++g) {
    buffers.groups[g] = group_score(attributes.group_scoring, buffers.keys + g * size, size);
  }
  top_k_ids(buffers.groups, attributes.num_groups, attributes.top_k_groups, buffers.chosen_groups);
  std::fill_n(buffers.groups, attributes.num_groups, 0.0f);
  for (int64_t i = 0; i < attributes.top_k_groups; ++i) buffers.groups[buffers.chosen_groups[i]] = 1.0f;
  for (int64_t g = 0; g < attributes.num_groups; ++g) {
    if (buffers.groups[g] == 0.0f) std::fill_n(buffers.keys + g * size, size, -kInfinity);
  }
}

void weigh(const RouterAttributes& attributes, const float* scores, const int32_t* ids, float* weights) {
  const int64_t k = attributes.top_k;
  for (int64_t i = 0; i < k; ++i) weights[i] = scores[ids[i]];
  if (attributes.scoring == Scoring::kSoftmaxAfterTopK) softmax(weights, k, weights);
  if (attributes.scoring == Scoring::kSigmoidAfterTopK) std::transform(weights, weights + k, weights, sigmoid);
  if (attributes.normalize) {
    float sum = attributes.norm_epsilon;
    for (int64_t i = 0; i < k; ++i) sum += weights[i];
    sum = sum < attributes.norm_min ? attributes.norm_min : sum;
    for (int64_t i = 0; i < k; ++i) weights[i] /= sum;
  }
  for (int64_t i = 0; i < k; ++i) weights[i] *= attributes.scaling_factor;
}

void route_row(const RouterAttributes& attributes, const RouterInput& input, const RowBuffers& buffers, int32_t* ids,
               float* weights) {
  const int64_t experts = input.num_experts;
  score(attributes.scoring, buffers.logits, experts, buffers.scores);
  bool has_nan = false;
  for (int64_t e = 0; e < experts; ++e) {
    buffers.keys[e] = buffers.scores[e] + (input.correction_bias ? input.correction_bias[e] : 0.0f);
    has_nan |= std::isnan(buffers.keys[e]);
  }
  if (has_nan) {
    for (int64_t i = 0; i < attributes.top_k; ++i) {
      ids[i] = static_cast<int32_t>(i);
      weights[i] = std::numeric_limits<float>::quiet_NaN();
    }
  } else {
    if (attributes.num_groups > 1) keep_best_groups(attributes, experts, buffers);
    top_k_ids(buffers.keys, experts, attributes.top_k, ids);
    weigh(attributes, buffers.scores, ids, weights);
  }
  for (int64_t i = 0; i < attributes.num_shared_experts; ++i) {
    ids[attributes.top_k + i] = static_cast<int32_t>(experts + i);
    weights[attributes.top_k + i] = 1.0f;
  }
}

// logits[tokens, experts] = hidden_states · gate_weightᵀ.
void multiply_gate(const Kernel& kernel, const RouterInput& input, float* logits, Host& host) {
  const int64_t depth = input.hidden_size;
  const int64_t padded = (depth + kRowPadding - 1) / kRowPadding * kRowPadding;
  const Scratch<float> rows(host, input.tokens * padded);
  const int64_t row_blocks = (input.tokens + kRowsPerTask - 1) / kRowsPerTask;
  parallel_for(host, row_blocks, [&](int64_t block) {
    const int64_t end = std::min(input.tokens, (block + 1) * kRowsPerTask);
    for (int64_t t = block * kRowsPerTask; t < end; ++t) {
      float* row = rows.data() + t * padded;
      kernel.widen(input.type, element_at(input.type, input.hidden_states, t * depth), depth, row);
      std::fill(row + depth, row + padded, 0.0f);
    }
  });
  const int64_t expert_blocks = (input.num_experts + kExpertsPerTask - 1) / kExpertsPerTask;
  parallel_for(host, row_blocks * expert_blocks, [&](int64_t task) {
    const int64_t first_row = task / expert_blocks * kRowsPerTask;
    const int64_t first = task % expert_blocks * kExpertsPerTask;
    const float* row_data[kRowsPerTask];
    const int64_t count = std::min(kRowsPerTask, input.tokens - first_row);
    for (int64_t r = 0; r < count; ++r) row_data[r] = rows.data() + (first_row + r) * padded;
    const PlainTile tile{input.gate_type, input.gate_weight, depth, first,
                         std::min(kExpertsPerTask, input.num_experts - first)};
    kernel.plain_products(tile, row_data, count,
                          {logits + first_row * input.num_experts + first, input.num_experts, 0});
  });
}

}  // namespace

Scoring parse_scoring(const std::string& name) {
  if (name == "softmax") return Scoring::kSoftmax;
  if (name == "sigmoid") return Scoring::kSigmoid;
  if (name == "sqrt_softplus") return Scoring::kSqrtSoftplus;
  if (name == "softmax_after_topk") return Scoring::kSoftmaxAfterTopK;
  if (name == "sigmoid_after_topk") return Scoring::kSigmoidAfterTopK;
  fail("scoring '", name,
       "' is unknown: use softmax, sigmoid, sqrt_softplus, softmax_after_topk or sigmoid_after_topk");
}

GroupScoring parse_group_scoring(const std::string& name) {
  if (name == "max") return GroupScoring::kMax;
  if (name == "top2_sum") return GroupScoring::kTop2Sum;
  fail("group_scoring '", name, "' is unknown: use max or top2_sum");
}

void validate(const RouterAttributes& attributes, int64_t num_experts) {
  const int64_t groups = attributes.num_groups;
  require(groups >= 1 && num_experts % groups == 0, "num_groups ", groups, " does not divide the ", num_experts,
          " experts: use a divisor");
  require(attributes.top_k_groups >= 1 && attributes.top_k_groups <= groups, "top_k_groups ", attributes.top_k_groups,
          " exceeds num_groups ", groups, ": use at most that many");
  const int64_t candidates = num_experts / groups * attributes.top_k_groups;
  require(attributes.top_k >= 1 && attributes.top_k <= candidates, "top_k ", attributes.top_k, " exceeds the ",
          candidates, " experts to choose from: use at most that many");
  require(attributes.group_scoring == GroupScoring::kMax || groups == 1 || num_experts / groups >= 2,
          "group_scoring 'top2_sum' needs groups of two experts or more, not ", num_experts / groups);
}

void route(const Kernel& kernel, const RouterAttributes& attributes, const RouterInput& input, Host& host) {
  if (input.tokens == 0) return;
  const int64_t experts = input.num_experts;
  const Scratch<float> own_logits(host, input.router_logits ? 1 : input.tokens * experts);
  float* logits = input.router_logits ? input.router_logits : own_logits.data();
  if (input.gate_weight) {
    multiply_gate(kernel, input, logits, host);
  } else {
    kernel.widen(input.type, input.hidden_states, input.tokens * experts, logits);
  }
  const Scratch<float> bias(host, experts);
  if (input.gate_bias) kernel.widen(input.bias_type, input.gate_bias, experts, bias.data());

  const int64_t tasks = (input.tokens + kTokensPerTask - 1) / kTokensPerTask;
  const int64_t buffer_size = 2 * experts + 2 * attributes.num_groups;
  const Scratch<float> buffers(host, tasks * buffer_size);
  parallel_for(host, tasks, [&](int64_t task) {
    float* buffer = buffers.data() + task * buffer_size;
    float* groups = buffer + 2 * experts;
    const int64_t end = std::min(input.tokens, (task + 1) * kTokensPerTask);
    for (int64_t t = task * kTokensPerTask; t < end; ++t) {
      float* row = logits + t * experts;
      if (input.gate_bias) std::transform(row, row + experts, bias.data(), row, [](float a, float b) { return a + b; });
      const RowBuffers row_buffers{row, buffer, buffer + experts, groups,
                                   reinterpret_cast<int32_t*>(groups + attributes.num_groups)};
      route_row(attributes, input, row_buffers, input.expert_ids + t * attributes.slots(),
                input.expert_weights + t * attributes.slots());
    }
  });
}

}  // namespace onnx_moe
