// The router in one dispatch: a threadgroup a token. Its simdgroups share the logits; the first one then scores, limits
// groups, chooses and weighs. Ties go to the lowest id. Where assignments are grouped next, it counts each expert's.
#include <metal_stdlib>

#include "activations.h"
#include "arguments.h"

using namespace metal;

constant uint SCORING [[function_constant(0)]];  // softmax, sigmoid, sqrt_softplus, softmax_after_topk, sigmoid_after_topk
constant uint NORMALIZE [[function_constant(1)]];
constant uint TOP2_SUM [[function_constant(2)]];
constant uint GATE [[function_constant(3)]];       // 0: hidden_states are the logits, 1 float, 2 ELEMENT
constant uint GATE_BIAS [[function_constant(4)]];  // 0 none, 1 float, 2 ELEMENT
constant uint HAS_CORRECTION [[function_constant(5)]];
constant uint HAS_LOGITS [[function_constant(6)]];  // whether anybody wants router_logits
constant uint HAS_COUNTS [[function_constant(7)]];  // whether assignments are grouped: counts begins as zeros

constant constexpr uint NONE = 0xFFFFFFFFu;

inline float read_parameter(device const uchar* values, uint kind, ulong index) {
  return kind == 1 ? ((device const float*)values)[index] : float(((device const ELEMENT*)values)[index]);
}

// A lane's part of the product of a token with a row of the gate: by 16 bytes where rows begin at multiples of that.
template <typename Gate>
inline float gate_product(device const ELEMENT* hidden, device const Gate* gate, uint columns, uint lane) {
  float sum = 0.0f;
  if (columns % EIGHT == 0) {
    for (uint first = EIGHT * lane; first < columns; first += EIGHT * SIMD_WIDTH) {
      float x[EIGHT];
      float weights[EIGHT];
      load_values(hidden + first, EIGHT, x);
      load_values(gate + first, EIGHT, weights);
      for (uint j = 0; j < EIGHT; ++j) sum = fma(x[j], weights[j], sum);
    }
  } else {
    for (uint h = lane; h < columns; h += SIMD_WIDTH) sum = fma(float(hidden[h]), float(gate[h]), sum);
  }
  return sum;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

// log(1 + e^x); the series keeps its precision where 1 + e^x would round to 1.
inline float softplus(float x) {
  if (x > 20.0f) return x;
  const float e = exp(x);
  if (e < 0.01f) return e * (1.0f - e * (0.5f - e * (0.33333334f - 0.25f * e)));
  return log(1.0f + e);
}

// Softmax of `count` values in place, by one simdgroup.
inline void softmax(threadgroup float* values, uint count, uint lane) {
  float largest = -INFINITY;
  for (uint i = lane; i < count; i += 32) largest = max(largest, values[i]);
  largest = simd_max(largest);
  float sum = 0.0f;
  for (uint i = lane; i < count; i += 32) {
    values[i] = exp(values[i] - largest);
    sum += values[i];
  }
  sum = simd_sum(sum);
  for (uint i = lane; i < count; i += 32) values[i] /= sum;
}

// Index of the largest value that is not NaN, the lowest of equals; a NaN marks what was taken before.
inline uint best_index(threadgroup const float* values, uint count, uint lane) {
  uint best = NONE;
  float best_value = -INFINITY;
  for (uint i = lane; i < count; i += 32) {
    const float value = values[i];
    if (value == value && (best == NONE || value > best_value)) {
      best = i;
      best_value = value;
    }
  }
  const float largest = simd_max(best_value);
  return simd_min(best_value == largest ? best : NONE);
}

inline float group_score(threadgroup const float* keys, uint count) {
  float best = -INFINITY;
  float second = -INFINITY;
  for (uint i = 0; i < count; ++i) {
    if (keys[i] > best) {
      second = best;
      best = keys[i];
    } else if (keys[i] > second) {
      second = keys[i];
    }
  }
  // An infinity and its opposite: the group comes last.
  const float score = TOP2_SUM ? best + second : best;
  return isnan(score) ? -INFINITY : score;
}

// Keys outside the best groups become -infinity. `groups` is scratch.
inline void keep_best_groups(constant RouterArguments& arguments, threadgroup float* keys, threadgroup float* groups,
                             uint lane) {
  const uint size = arguments.num_experts / arguments.num_groups;
  for (uint g = lane; g < arguments.num_groups; g += 32) groups[g] = group_score(keys + g * size, size);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = 0; i < arguments.top_k_groups; ++i) {
    const uint best = best_index(groups, arguments.num_groups, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0) groups[best] = NAN;
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (uint e = lane; e < arguments.num_experts; e += 32) {
    if (!isnan(groups[e / size])) keys[e] = -INFINITY;
  }
}

inline float score_of(float logit) {
  if (SCORING == 1) return sigmoid(logit);
  if (SCORING == 2) return sqrt(softplus(logit));
  return logit;
}

// Integers: the order of threadgroups does not show in the sums.
inline void count_assignment(device atomic_uint* counts, uint expert) {
  if (HAS_COUNTS) atomic_fetch_add_explicit(counts + expert, 1u, memory_order_relaxed);
}

kernel void router(constant RouterArguments& arguments [[buffer(0)]],
                   device const ELEMENT* hidden_states [[buffer(1)]],
                   device const uchar* gate_weight [[buffer(2)]],
                   device const uchar* gate_bias [[buffer(3)]],
                   device const float* correction_bias [[buffer(4)]],
                   device int* expert_ids [[buffer(5)]],
                   device float* expert_weights [[buffer(6)]],
                   device float* router_logits [[buffer(7)]],
                   device atomic_uint* counts [[buffer(8)]],
                   uint token [[threadgroup_position_in_grid]],
                   uint simdgroups [[simdgroups_per_threadgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float scores[ROUTER_EXPERTS];
  threadgroup float keys[ROUTER_EXPERTS];
  threadgroup float groups[ROUTER_EXPERTS];
  threadgroup float chosen[ROUTER_SLOTS];
  const uint experts = arguments.num_experts;
  for (uint e = simdgroup; e < experts; e += simdgroups) {
    float logit = 0.0f;
    if (GATE == 0) {
      logit = float(hidden_states[ulong(token) * experts + e]);
    } else {
      const uint columns = arguments.hidden_size;
      device const ELEMENT* hidden = hidden_states + ulong(token) * columns;
      const ulong row = ulong(e) * columns;
      if (GATE == 1) logit = gate_product(hidden, (device const float*)gate_weight + row, columns, lane);
      if (GATE == 2) logit = gate_product(hidden, (device const ELEMENT*)gate_weight + row, columns, lane);
      logit = simd_sum(logit);
    }
    if (GATE_BIAS != 0) logit += read_parameter(gate_bias, GATE_BIAS, e);
    if (lane == 0) {
      if (HAS_LOGITS) router_logits[ulong(token) * experts + e] = logit;
      scores[e] = score_of(logit);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup != 0) return;

  if (SCORING == 0) softmax(scores, experts, lane);
  bool has_nan = false;
  for (uint e = lane; e < experts; e += 32) {
    keys[e] = scores[e] + (HAS_CORRECTION ? correction_bias[e] : 0.0f);
    has_nan = has_nan || isnan(keys[e]);
  }
  has_nan = simd_max(has_nan ? 1u : 0u) != 0;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  const uint slots = arguments.top_k + arguments.num_shared_experts;
  device int* ids = expert_ids + ulong(token) * slots;
  device float* weights = expert_weights + ulong(token) * slots;
  if (lane < arguments.num_shared_experts) {
    ids[arguments.top_k + lane] = int(experts + lane);
    weights[arguments.top_k + lane] = 1.0f;
    count_assignment(counts, experts + lane);
  }
  if (has_nan) {
    if (lane < arguments.top_k) {
      ids[lane] = int(lane);
      weights[lane] = NAN;
      count_assignment(counts, lane);
    }
    return;
  }
  if (arguments.num_groups > 1) keep_best_groups(arguments, keys, groups, lane);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = 0; i < arguments.top_k; ++i) {
    const uint best = best_index(keys, experts, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0) {
      keys[best] = NAN;
      ids[i] = int(best);
      chosen[i] = scores[best];
      count_assignment(counts, best);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (SCORING == 3) softmax(chosen, arguments.top_k, lane);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  float weight = 0.0f;
  if (lane < arguments.top_k) weight = SCORING == 4 ? sigmoid(chosen[lane]) : chosen[lane];
  if (NORMALIZE) {
    const float sum = simd_sum(weight) + arguments.norm_epsilon;
    weight /= sum < arguments.norm_min ? arguments.norm_min : sum;
  }
  if (lane < arguments.top_k) weights[lane] = weight * arguments.scaling_factor;
}
