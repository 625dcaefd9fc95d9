// Barriers, and functions of the 32 lanes of a simdgroup.
//
// On fibers a lane leaves its argument and waits; when all active lanes have come to the same call, the function runs
// once for all of them. On CUDA they are warp shuffles. Reductions pair lanes alike on both (16, 8, 4, 2, 1 apart), so
// that their results have the same bits.
#pragma once

#include "functions.h"

namespace mslns {
namespace metal {

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
MSL_V mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

#if defined(MSL_CPU)

MSL_F uint msl_lane() { return mslrt_lane(); }
#define MSL_COLLECT(function, argument, name) mslrt_simd(function, &argument, name, MSL_HERE_ONLY)
#define MSL_FOR_LANES(active)           \
  for (int lane = 0; lane < 32; lane++) \
    if ((active >> lane) & 1u)

inline void msl_meet(void**, unsigned) {}
MSL_F void threadgroup_barrier(mem_flags flags MSL_PLACE) { mslrt_barrier(uint(flags), MSL_HERE_ONLY); }
MSL_F void simdgroup_barrier(mem_flags flags MSL_PLACE) {
  int orders_memory = int(flags);
  MSL_COLLECT(msl_meet, orders_memory, "simdgroup_barrier");
}

template <class T>
struct msl_shuffle_argument {
  T value, result;
  int source;
};
template <class T>
MSL_COLLECTIVE void msl_shuffle_all(void** lanes, unsigned active) {
  typedef msl_shuffle_argument<T>* Lane;
  MSL_FOR_LANES(active) {
    Lane own = (Lane)lanes[lane];
    if (own->source < 0 || own->source > 31) {
      own->result = own->value;
    } else if ((active >> own->source) & 1u) {
      own->result = ((Lane)lanes[own->source])->value;
    } else {
      __builtin_memset((void*)&own->result, 0xFF, sizeof(T));  // undefined in MSL: NaN shows
    }
  }
}
// The value of lane `source`; a lane's own where there is no such lane.
template <class T>
MSL_F T msl_shuffle(T value, int source, const char* name MSL_PLACE) {
  msl_shuffle_argument<T> argument{value, T(), source};
  MSL_COLLECT(msl_shuffle_all<T>, argument, name);
  return argument.result;
}

struct msl_vote {
  bool vote;
  uint votes, active;
};
MSL_COLLECTIVE inline void msl_count_votes(void** lanes, unsigned active) {
  uint votes = 0;
  MSL_FOR_LANES(active) votes |= uint(((msl_vote*)lanes[lane])->vote) << lane;
  MSL_FOR_LANES(active) {
    ((msl_vote*)lanes[lane])->votes = votes;
    ((msl_vote*)lanes[lane])->active = active;
  }
}
MSL_F msl_vote msl_collect_votes(bool vote, const char* name MSL_PLACE) {
  msl_vote argument{vote, 0, 0};
  MSL_COLLECT(msl_count_votes, argument, name);
  return argument;
}

template <class T>
struct msl_reduction_argument {
  T value, result;
};
template <class T, class Operation>
MSL_COLLECTIVE void msl_reduce_all(void** lanes, unsigned active) {
  typedef msl_reduction_argument<T>* Lane;
  T values[32];
  unsigned there = active;
  MSL_FOR_LANES(active) values[lane] = ((Lane)lanes[lane])->value;
  for (int distance = 16; distance; distance /= 2) {
    for (int lane = 0; lane < distance; lane++) {
      const bool left = (there >> lane) & 1u, right = (there >> (lane + distance)) & 1u;
      if (left && right) values[lane] = Operation()(values[lane], values[lane + distance]);
      if (!left && right) values[lane] = values[lane + distance];
      if (right) there |= 1u << lane;
    }
  }
  MSL_FOR_LANES(active)((Lane)lanes[lane])->result = values[0];
}
template <class T, class Operation>
MSL_F T msl_reduce(T value, const char* name MSL_PLACE) {
  msl_reduction_argument<T> argument{value, T()};
  MSL_COLLECT((msl_reduce_all<T, Operation>), argument, name);
  return argument.result;
}

template <class T, bool inclusive>
MSL_COLLECTIVE void msl_prefix_sums(void** lanes, unsigned active) {
  typedef msl_reduction_argument<T>* Lane;
  T sum = T(0);
  MSL_FOR_LANES(active) {
    Lane own = (Lane)lanes[lane];
    const T next = T(sum + own->value);
    own->result = inclusive ? next : sum;
    sum = next;
  }
}
template <class T, bool inclusive>
MSL_F T msl_prefix_sum(T value, const char* name MSL_PLACE) {
  msl_reduction_argument<T> argument{value, T()};
  MSL_COLLECT((msl_prefix_sums<T, inclusive>), argument, name);
  return argument.result;
}

#elif defined(MSL_CUDA)

MSL_F uint msl_lane() {
  uint lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}
MSL_F void threadgroup_barrier(mem_flags) { __syncthreads(); }
MSL_F void simdgroup_barrier(mem_flags) { __syncwarp(); }

template <class T>
MSL_F T msl_shuffle(T value, int source, const char*) {
  uint words[(sizeof(T) + 3) / 4] = {};
  MSL_MEMCPY(words, (const void*)&value, sizeof(T));
  const int from = source < 0 || source > 31 ? int(msl_lane()) : source;
  for (uint& word : words) word = __shfl_sync(0xFFFFFFFFu, word, from);
  T result;
  MSL_MEMCPY((void*)&result, words, sizeof(T));
  return result;
}

struct msl_vote {
  uint votes, active;
};
MSL_F msl_vote msl_collect_votes(bool vote, const char*) {
  const uint active = __activemask();
  return {__ballot_sync(active, vote), active};
}

template <class T, class Operation>
MSL_F T msl_reduce(T value, const char* name) {
  for (int distance = 16; distance; distance /= 2) {
    value = Operation()(value, msl_shuffle(value, int(msl_lane() ^ distance), name));
  }
  return value;
}
// One lane after the other, as on fibers.
template <class T, bool inclusive>
MSL_F T msl_prefix_sum(T value, const char* name) {
  T sum = T(0), result = T(0);
  for (int lane = 0; lane < 32; lane++) {
    const T next = T(sum + msl_shuffle(value, lane, name));
    if (lane == int(msl_lane())) result = inclusive ? next : sum;
    sum = next;
  }
  return result;
}

#else

uint msl_lane();
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
template <class T>
T msl_shuffle(T, int, const __constant char*);
struct msl_vote {
  uint votes, active;
};
msl_vote msl_collect_votes(bool, const __constant char*);
template <class T, class Operation>
T msl_reduce(T, const __constant char*);
template <class T, bool inclusive>
T msl_prefix_sum(T, const __constant char*);

#endif

#define MSL_SHUFFLE(name, parameter, source)           \
  template <class T>                                   \
  MSL_F T name(T value, ushort parameter MSL_PLACE) {  \
    return msl_shuffle(value, source, #name MSL_HERE); \
  }                                                    \
  static_assert(true, "")
MSL_SHUFFLE(simd_shuffle, from, int(from));
MSL_SHUFFLE(simd_broadcast, from, int(from));
MSL_SHUFFLE(simd_shuffle_xor, mask, int(msl_lane() ^ mask));
MSL_SHUFFLE(simd_shuffle_up, delta, int(msl_lane()) - int(delta));
MSL_SHUFFLE(simd_shuffle_down, delta, int(msl_lane()) + int(delta));
#undef MSL_SHUFFLE

MSL_F ulong simd_ballot(bool vote MSL_PLACE) { return msl_collect_votes(vote, "simd_ballot" MSL_HERE).votes; }
MSL_F bool simd_any(bool vote MSL_PLACE) { return msl_collect_votes(vote, "simd_any" MSL_HERE).votes != 0; }
MSL_F bool simd_all(bool vote MSL_PLACE) {
  const msl_vote all = msl_collect_votes(vote, "simd_all" MSL_HERE);
  return all.votes == all.active;
}

#define MSL_REDUCTION(name, value)                                           \
  struct msl_##name {                                                        \
    template <class T>                                                       \
    MSL_F T operator()(T a, T b) const {                                     \
      return T(value);                                                       \
    }                                                                        \
  };                                                                         \
  template <class T>                                                         \
  MSL_F T simd_##name(T value_of_lane MSL_PLACE) {                           \
    return msl_reduce<T, msl_##name>(value_of_lane, "simd_" #name MSL_HERE); \
  }                                                                          \
  static_assert(true, "")
MSL_REDUCTION(sum, a + b);
MSL_REDUCTION(min, metal::min(a, b));
MSL_REDUCTION(max, metal::max(a, b));
MSL_REDUCTION(or, a | b);
MSL_REDUCTION(xor, a ^ b);
#undef MSL_REDUCTION

template <class T>
MSL_F T simd_prefix_inclusive_sum(T value MSL_PLACE) {
  return msl_prefix_sum<T, true>(value, "simd_prefix_inclusive_sum" MSL_HERE);
}
template <class T>
MSL_F T simd_prefix_exclusive_sum(T value MSL_PLACE) {
  return msl_prefix_sum<T, false>(value, "simd_prefix_exclusive_sum" MSL_HERE);
}

}  // namespace metal
}  // namespace mslns
