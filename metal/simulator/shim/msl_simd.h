// msl_simd.h - barriers, simdgroup and quadgroup functions, simdgroup_matrix.
//
// CPU:  a collective posts a pointer to its argument record and yields; when
//       every active lane of the simdgroup has arrived the runtime calls the
//       function once with all 32 records (null for inactive lanes).
// CUDA: the same operations on __shfl_sync. Reductions use the same pairing
//       (16, 8, 4, 2, 1) on both, so their results agree bit for bit.
#ifndef MSL_SIMD_H
#define MSL_SIMD_H
#include "msl_math.h"

#if defined(MSL_CUDA)
#ifndef MSL_WARP_MASK  // lanes expected at a collective; __activemask() allows divergent ones
#define MSL_WARP_MASK 0xFFFFFFFFu
#endif
#endif

namespace mslns {
namespace metal {

enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_object_data = 16
};
MSL_C mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }
enum class thread_scope : uint {
  thread_scope_thread,
  thread_scope_threadgroup,
  thread_scope_device,
  thread_scope_simdgroup
};
constexpr thread_scope thread_scope_thread = thread_scope::thread_scope_thread;
constexpr thread_scope thread_scope_threadgroup = thread_scope::thread_scope_threadgroup;
constexpr thread_scope thread_scope_device = thread_scope::thread_scope_device;
constexpr thread_scope thread_scope_simdgroup = thread_scope::thread_scope_simdgroup;

// ------------------------------------------------------------ target layer --
// msl_lane(): index in the simdgroup.  simd_op<Op>(arg): the collective.
#if defined(MSL_CPU)
MSL_F uint msl_lane() { return mslrt_lane(); }
#define MSL_POST(fn, a, name) mslrt_simd(fn, &a, name, MSL_HERE)
#define MSL_LANES(a, m)        \
  for (int l = 0; l < 32; l++) \
    if ((m >> l) & 1u)
inline void msl_simd_nop(void**, unsigned) {}
MSL_F void threadgroup_barrier(mem_flags f MSL_SITE) { mslrt_barrier(uint(f), MSL_HERE); }
MSL_F void threadgroup_barrier(mem_flags f, thread_scope MSL_SITE) { mslrt_barrier(uint(f), MSL_HERE); }
MSL_F void simdgroup_barrier(mem_flags f MSL_SITE) {
  int a = int(f);
  MSL_POST(msl_simd_nop, a, "simdgroup_barrier");
}
MSL_F void simdgroup_barrier(mem_flags f, thread_scope MSL_SITE) {
  int a = int(f);
  MSL_POST(msl_simd_nop, a, "simdgroup_barrier");
}
#elif defined(MSL_CUDA)
#if defined(__CUDA_ARCH__) || defined(__CUDACC__)
MSL_F uint msl_lane() {
  uint r;
  asm("mov.u32 %0, %%laneid;" : "=r"(r));
  return r;
}
#else
MSL_F uint msl_lane() { return ::mslrt_lane(); }  // tests/cuda_emu.h
#endif
MSL_F void threadgroup_barrier(mem_flags) { __syncthreads(); }
MSL_F void threadgroup_barrier(mem_flags, thread_scope) { __syncthreads(); }
MSL_F void simdgroup_barrier(mem_flags) { __syncwarp(MSL_WARP_MASK); }
MSL_F void simdgroup_barrier(mem_flags, thread_scope) { __syncwarp(MSL_WARP_MASK); }
#else
uint msl_lane();
void threadgroup_barrier(mem_flags);
void threadgroup_barrier(mem_flags, thread_scope);
void simdgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags, thread_scope);
#endif

// ----------------------------------------------------------------- shuffles --
// Every shuffle is "lane l reads lane src(l)"; a source outside 0..31 means
// "keep own value", or the filling value when there is one.
#if defined(MSL_CPU)
template <class T>
struct msl_shuf_arg {
  T v, out;
  int src;
};
template <class T>
MSL_COLLECTIVE void msl_shuf_fn(void** a, unsigned m) {
  typedef msl_shuf_arg<T> R;
  MSL_LANES(a, m) {
    R* r = (R*)a[l];
    if (r->src < 0 || r->src > 31)
      r->out = r->v;
    else if ((m >> r->src) & 1u)
      r->out = ((R*)a[r->src])->v;
    else
      __builtin_memset((void*)&r->out, 0xFF, sizeof(T));  // undefined in MSL: make it visible
  }
}
template <class T>
MSL_F T msl_shuf(T v, int src MSL_SITE) {
  msl_shuf_arg<T> a;
  a.v = v;
  a.src = src;
  MSL_POST(msl_shuf_fn<T>, a, "simd_shuffle");
  return a.out;
}
#elif defined(MSL_CUDA)
template <class T>
MSL_F T msl_shuf(T v, int src) {
  constexpr int n = (sizeof(T) + 3) / 4;
  uint w[n];
  w[n - 1] = 0;
  MSL_MEMCPY(w, (const void*)&v, sizeof(T));
  int s = (src < 0 || src > 31) ? int(msl_lane()) : src;
  for (int i = 0; i < n; i++) w[i] = __shfl_sync(MSL_WARP_MASK, w[i], s);
  T r;
  MSL_MEMCPY((void*)&r, w, sizeof(T));
  return r;
}
#else
template <class T>
T msl_shuf(T v, int) {
  return v;
}
#endif
#if defined(MSL_CPU)
#define MSL_PASS , MSL_HERE
#else
#define MSL_PASS
#endif
template <class T>
using msl_v = msl_value_t<T>;
#define MSL_SHUF(name, params, src)                       \
  template <class T>                                      \
  MSL_F msl_v<T> name(T v, params MSL_SITE) {             \
    return msl_shuf<msl_v<T>>(msl_v<T>(v), src MSL_PASS); \
  }
MSL_SHUF(simd_shuffle, ushort lane, int(lane))
MSL_SHUF(simd_broadcast, ushort lane, int(lane))
MSL_SHUF(simd_shuffle_xor, ushort mask, int(msl_lane() ^ mask))
MSL_SHUF(simd_shuffle_up, ushort delta, int(msl_lane()) - int(delta))
MSL_SHUF(simd_shuffle_down, ushort delta, int(msl_lane()) + int(delta))
MSL_SHUF(simd_shuffle_rotate_up, ushort delta, int((msl_lane() - delta) & 31u))
MSL_SHUF(simd_shuffle_rotate_down, ushort delta, int((msl_lane() + delta) & 31u))
MSL_SHUF(quad_shuffle, ushort lane, int((msl_lane() & 28u) | (lane & 3u)))
MSL_SHUF(quad_broadcast, ushort lane, int((msl_lane() & 28u) | (lane & 3u)))
MSL_SHUF(quad_shuffle_xor, ushort mask, int(msl_lane() ^ (mask & 3u)))
MSL_SHUF(quad_shuffle_up, ushort d, (msl_lane() & 3u) >= d ? int(msl_lane() - d) : -1)
MSL_SHUF(quad_shuffle_down, ushort d, (msl_lane() & 3u) + d < 4u ? int(msl_lane() + d) : -1)
MSL_SHUF(quad_shuffle_rotate_up, ushort d, int((msl_lane() & 28u) | ((msl_lane() - d) & 3u)))
MSL_SHUF(quad_shuffle_rotate_down, ushort d, int((msl_lane() & 28u) | ((msl_lane() + d) & 3u)))
// Lanes shifted in come from the filling data: from the far end of each
// modulo-wide segment.
template <class T>
MSL_F msl_v<T> simd_shuffle_and_fill_down(T v, T fill, ushort delta, ushort modulo MSL_SITE) {
  int l = int(msl_lane()), s = l % modulo + delta, base = l - l % modulo;
  msl_v<T> a = msl_shuf<msl_v<T>>(msl_v<T>(v), s < modulo ? base + s : -1 MSL_PASS);
  msl_v<T> b = msl_shuf<msl_v<T>>(msl_v<T>(fill), s < modulo ? -1 : base + s - modulo MSL_PASS);
  return s < modulo ? a : b;
}
template <class T>
MSL_F msl_v<T> simd_shuffle_and_fill_up(T v, T fill, ushort delta, ushort modulo MSL_SITE) {
  int l = int(msl_lane()), s = l % modulo - delta, base = l - l % modulo;
  msl_v<T> a = msl_shuf<msl_v<T>>(msl_v<T>(v), s >= 0 ? base + s : -1 MSL_PASS);
  msl_v<T> b = msl_shuf<msl_v<T>>(msl_v<T>(fill), s >= 0 ? -1 : base + s + modulo MSL_PASS);
  return s >= 0 ? a : b;
}
template <class T>
MSL_F msl_v<T> simd_shuffle_and_fill_down(T v, T fill, ushort delta MSL_SITE) {
  return simd_shuffle_and_fill_down(v, fill, delta, ushort(32) MSL_PASS);
}
template <class T>
MSL_F msl_v<T> simd_shuffle_and_fill_up(T v, T fill, ushort delta MSL_SITE) {
  return simd_shuffle_and_fill_up(v, fill, delta, ushort(32) MSL_PASS);
}

// -------------------------------------------------------------------- votes --
#if defined(MSL_CPU)
struct msl_vote_arg {
  bool v;
  uint yes, active;
};
MSL_COLLECTIVE inline void msl_vote_fn(void** a, unsigned m) {
  uint y = 0;
  MSL_LANES(a, m) if (((msl_vote_arg*)a[l])->v) y |= 1u << l;
  MSL_LANES(a, m) {
    ((msl_vote_arg*)a[l])->yes = y;
    ((msl_vote_arg*)a[l])->active = m;
  }
}
MSL_F msl_vote_arg msl_vote(bool v, const char* what MSL_SITE) {
  msl_vote_arg a;
  a.v = v;
  MSL_POST(msl_vote_fn, a, what);
  return a;
}
#elif defined(MSL_CUDA)
struct msl_vote_arg {
  uint yes, active;
};
MSL_F msl_vote_arg msl_vote(bool v, const char*) {
  msl_vote_arg a;
  a.active = __activemask();
  a.yes = __ballot_sync(a.active, v);
  return a;
}
#else
struct msl_vote_arg {
  uint yes, active;
};
inline msl_vote_arg msl_vote(bool v, const __constant char*) {
  msl_vote_arg a;
  a.yes = a.active = v;
  return a;
}
#endif
struct simd_vote {
  typedef ulong vote_t;
  ulong m;
  MSL_V explicit simd_vote(ulong x = 0) : m(x) {}
  MSL_V operator vote_t() const { return m; }
  MSL_V bool all() const { return m == 0xFFFFFFFFul; }
  MSL_V bool any() const { return m != 0; }
};
MSL_F bool simd_is_first(MSL_SITE0) {
  return msl_lane() == uint(msl_ctz(msl_vote(true, "simd_is_first" MSL_PASS).active));
}
MSL_F bool simd_is_helper_thread() { return false; }
MSL_F simd_vote simd_ballot(bool v MSL_SITE) { return simd_vote(msl_vote(v, "simd_ballot" MSL_PASS).yes); }
MSL_F simd_vote simd_active_threads_mask(MSL_SITE0) {
  return simd_vote(msl_vote(true, "simd_active_threads_mask" MSL_PASS).active);
}
MSL_F bool simd_any(bool v MSL_SITE) { return msl_vote(v, "simd_any" MSL_PASS).yes != 0; }
MSL_F bool simd_all(bool v MSL_SITE) {
  msl_vote_arg a = msl_vote(v, "simd_all" MSL_PASS);
  return a.yes == a.active;
}
MSL_F bool quad_any(bool v MSL_SITE) {
  return ((msl_vote(v, "quad_any" MSL_PASS).yes >> (msl_lane() & 28u)) & 15u) != 0;
}
MSL_F bool quad_all(bool v MSL_SITE) {
  msl_vote_arg a = msl_vote(v, "quad_all" MSL_PASS);
  uint s = msl_lane() & 28u;
  return ((a.yes >> s) & 15u) == ((a.active >> s) & 15u);
}
template <class T>
MSL_F msl_v<T> simd_broadcast_first(T v MSL_SITE) {
  int f = int(msl_ctz(msl_vote(true, "simd_broadcast_first" MSL_PASS).active));
  return msl_shuf<msl_v<T>>(msl_v<T>(v), f MSL_PASS);
}

// --------------------------------------------------------------- reductions --
struct msl_op_sum {
  template <class T>
  MSL_V T operator()(T a, T b) const {
    return T(a + b);
  }
};
struct msl_op_product {
  template <class T>
  MSL_V T operator()(T a, T b) const {
    return T(a * b);
  }
};
struct msl_op_min {
  template <class T>
  MSL_V T operator()(T a, T b) const {
    return T(metal::min(a, b));
  }
};
struct msl_op_max {
  template <class T>
  MSL_V T operator()(T a, T b) const {
    return T(metal::max(a, b));
  }
};
struct msl_op_and {
  template <class T>
  MSL_V T operator()(T a, T b) const {
    return T(a & b);
  }
};
struct msl_op_or {
  template <class T>
  MSL_V T operator()(T a, T b) const {
    return T(a | b);
  }
};
struct msl_op_xor {
  template <class T>
  MSL_V T operator()(T a, T b) const {
    return T(a ^ b);
  }
};
#if defined(MSL_CPU)
template <class T>
struct msl_red_arg {
  T v, out;
};
template <class T, class Op, int W>
MSL_COLLECTIVE void msl_red_fn(void** a, unsigned m) {  // reduce over segments of W lanes
  typedef msl_red_arg<T> R;
  T t[32];
  for (int s = 0; s < 32; s += W) {
    unsigned live = 0;
    for (int l = s; l < s + W; l++)
      if ((m >> l) & 1u) {
        t[l] = ((R*)a[l])->v;
        live |= 1u << l;
      }
    for (int o = W / 2; o; o >>= 1)
      for (int l = s; l < s + o; l++) {
        bool p = (live >> l) & 1u, q = (live >> (l + o)) & 1u;
        if (p && q)
          t[l] = Op()(t[l], t[l + o]);
        else if (q) {
          t[l] = t[l + o];
          live |= 1u << l;
        }
      }
    for (int l = s; l < s + W; l++)
      if ((m >> l) & 1u) ((R*)a[l])->out = t[s];
  }
}
template <class T, class Op, int kind>
MSL_COLLECTIVE void msl_scan_fn(void** a, unsigned m) {  // kind 0 inclusive, 1/2 exclusive from 0/1
  typedef msl_red_arg<T> R;
  T acc = T(kind == 2 ? 1 : 0);
  bool first = kind == 0;
  MSL_LANES(a, m) {
    R* r = (R*)a[l];
    T nxt = first ? r->v : Op()(acc, r->v);
    first = false;
    r->out = kind == 0 ? nxt : acc;
    acc = nxt;
  }
}
template <class T, class Op, int W>
MSL_F T msl_reduce(T v, const char* what MSL_SITE) {
  msl_red_arg<T> a;
  a.v = v;
  MSL_POST((msl_red_fn<T, Op, W>), a, what);
  return a.out;
}
template <class T, class Op, int kind>
MSL_F T msl_scan(T v, const char* what MSL_SITE) {
  msl_red_arg<T> a;
  a.v = v;
  MSL_POST((msl_scan_fn<T, Op, kind>), a, what);
  return a.out;
}
#define MSL_NAME(n) n
#elif defined(MSL_CUDA)
template <class T, class Op, int W>
MSL_F T msl_reduce(T v, const char*) {
  for (int o = W / 2; o; o >>= 1) v = Op()(v, msl_shuf<T>(v, int(msl_lane() ^ o)));
  return v;
}
template <class T, class Op, int kind>
MSL_F T msl_scan(T v, const char*) {
  int l = int(msl_lane());
  T acc = T(kind == 2 ? 1 : 0), out = v;
  for (int s = 0; s < 32; s++) {  // serial, in lane order, as on the CPU
    T x = msl_shuf<T>(v, s);
    T nxt = (s == 0 && kind == 0) ? x : Op()(acc, x);
    if (s == l) out = kind == 0 ? nxt : acc;
    acc = nxt;
  }
  return out;
}
#define MSL_NAME(n) n
#else
template <class T, class Op, int W>
T msl_reduce(T v) {
  return v;
}
template <class T, class Op, int kind>
T msl_scan(T v) {
  return v;
}
#endif
#if defined(MSL_CHECK)
#define MSL_RED(name, Op, W)                         \
  template <class T>                                 \
  MSL_F msl_v<T> name(T v) {                         \
    return msl_reduce<msl_v<T>, Op, W>(msl_v<T>(v)); \
  }
#define MSL_SCAN(name, Op, k)                      \
  template <class T>                               \
  MSL_F msl_v<T> name(T v) {                       \
    return msl_scan<msl_v<T>, Op, k>(msl_v<T>(v)); \
  }
#else
#define MSL_RED(name, Op, W)                                         \
  template <class T>                                                 \
  MSL_F msl_v<T> name(T v MSL_SITE) {                                \
    return msl_reduce<msl_v<T>, Op, W>(msl_v<T>(v), #name MSL_PASS); \
  }
#define MSL_SCAN(name, Op, k)                                      \
  template <class T>                                               \
  MSL_F msl_v<T> name(T v MSL_SITE) {                              \
    return msl_scan<msl_v<T>, Op, k>(msl_v<T>(v), #name MSL_PASS); \
  }
#endif
#define MSL_X(n) MSL_RED(simd_##n, msl_op_##n, 32) MSL_RED(quad_##n, msl_op_##n, 4)
MSL_X(sum)
MSL_X(product)
MSL_X(min) MSL_X(max) MSL_X(and) MSL_X(or) MSL_X(xor)
#undef MSL_X
    MSL_SCAN(simd_prefix_inclusive_sum, msl_op_sum, 0) MSL_SCAN(simd_prefix_exclusive_sum, msl_op_sum, 1)
        MSL_SCAN(simd_prefix_inclusive_product, msl_op_product, 0)
            MSL_SCAN(simd_prefix_exclusive_product, msl_op_product, 2)

    // --------------------------------------------------------- simdgroup_matrix --
    // Two neighbouring elements of one row per lane, in the layout of Apple GPUs
    // (undocumented, but relied on by MLX through thread_elements()):
    //   row = (q & 4) + (lane / 2) % 4,  col = (q & 2) * 2 + (lane % 2) * 2,  q = lane / 4
    MSL_V constexpr uint msl_row(uint l) {
  return ((l >> 2) & 4u) + ((l >> 1) & 3u);
}
MSL_V constexpr uint msl_col(uint l) { return ((l >> 2) & 2u) * 2u + (l & 1u) * 2u; }
MSL_V constexpr uint msl_lane_of(uint r, uint c) {
  return ((r & 4u) << 2) | ((c & 4u) << 1) | ((r & 3u) << 1) | ((c & 2u) >> 1);
}

template <class T, int R = 8, int C = R>
struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "MSL has 8x8 simdgroup matrices only");
  vec<T, 2> e;
  simdgroup_matrix() = default;
  MSL_F explicit simdgroup_matrix(T diag) {
    uint r = msl_row(msl_lane()), c = msl_col(msl_lane());
    e = vec<T, 2>(r == c ? diag : T(0), r == c + 1u ? diag : T(0));
  }
#if defined(MSL_CHECK)
  __private vec<T, 2>& thread_elements() __private { return e; }
#else
  MSL_F vec<T, 2>& thread_elements() { return e; }
  MSL_F const vec<T, 2>& thread_elements() const { return e; }
#endif
};
template <class T, int R, int C>
MSL_F simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T v) {
  simdgroup_matrix<T, R, C> m;
  m.e = vec<T, 2>(v, v);
  return m;
}
template <class T, int R, int C>
MSL_F simdgroup_matrix<T, R, C> make_diagonal_simdgroup_matrix(T v) {
  return simdgroup_matrix<T, R, C>(v);
}
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

// Matrix element (r, c) is src[(y + r) * ld + x + c], or with transpose src[(y + c) * ld + x + r].
#define MSL_X(AS)                                                                                                     \
  template <class T>                                                                                                  \
  MSL_F void simdgroup_load(MSL_THR simdgroup_matrix<T, 8, 8>& m, const AS T* src, ulong ld = 8,                      \
                            ulong2 origin = ulong2(0), bool transpose = false) {                                      \
    ulong r = msl_row(msl_lane()), c = msl_col(msl_lane());                                                           \
    for (ulong j = 0; j < 2; j++)                                                                                     \
      m.e[int(j)] =                                                                                                   \
          transpose ? src[(origin.y + c + j) * ld + origin.x + r] : src[(origin.y + r) * ld + origin.x + c + j];      \
  }                                                                                                                   \
  template <class T>                                                                                                  \
  MSL_F void simdgroup_store(simdgroup_matrix<T, 8, 8> m, AS T* dst, ulong ld = 8, ulong2 origin = ulong2(0),         \
                             bool transpose = false) {                                                                \
    ulong r = msl_row(msl_lane()), c = msl_col(msl_lane());                                                           \
    for (ulong j = 0; j < 2; j++)                                                                                     \
      dst[transpose ? (origin.y + c + j) * ld + origin.x + r : (origin.y + r) * ld + origin.x + c + j] = m.e[int(j)]; \
  }
MSL_EACH_SHARED(MSL_X)
#undef MSL_X

// D = A * B + C, accumulated in float, k ascending, fused.
#if defined(MSL_CPU)
template <class TA, class TB, class TC>
struct msl_mma_arg {
  vec<TA, 2> a;
  vec<TB, 2> b;
  vec<TC, 2> c;
  float d[2];
};
template <class TA, class TB, class TC>
MSL_COLLECTIVE void msl_mma_fn(void** p, unsigned m) {
  typedef msl_mma_arg<TA, TB, TC> R;
  float A[8][8] = {}, B[8][8] = {}, D[8][8] = {};
  MSL_LANES(p, m) {
    R* r = (R*)p[l];
    uint i = msl_row(uint(l)), j = msl_col(uint(l));
    for (int k = 0; k < 2; k++) {
      A[i][j + k] = (float)r->a[k];
      B[i][j + k] = (float)r->b[k];
      D[i][j + k] = (float)r->c[k];
    }
  }
  for (int i = 0; i < 8; i++)
    for (int k = 0; k < 8; k++)
      for (int j = 0; j < 8; j++) D[i][j] = __builtin_fmaf(A[i][k], B[k][j], D[i][j]);
  MSL_LANES(p, m) {
    R* r = (R*)p[l];
    uint i = msl_row(uint(l)), j = msl_col(uint(l));
    r->d[0] = D[i][j];
    r->d[1] = D[i][j + 1];
  }
}
template <class TA, class TB, class TC>
MSL_F vec<float, 2> msl_mma(vec<TA, 2> a, vec<TB, 2> b, vec<TC, 2> c MSL_SITE) {
  msl_mma_arg<TA, TB, TC> r;
  r.a = a;
  r.b = b;
  r.c = c;
  MSL_POST((msl_mma_fn<TA, TB, TC>), r, "simdgroup_multiply_accumulate");
  return vec<float, 2>(r.d[0], r.d[1]);
}
#elif defined(MSL_CUDA)
template <class TA, class TB, class TC>
MSL_F vec<float, 2> msl_mma(vec<TA, 2> a, vec<TB, 2> b, vec<TC, 2> c) {
  uint l = msl_lane(), row = msl_row(l), col = msl_col(l);
  float a0 = (float)a[0], a1 = (float)a[1], b0 = (float)b[0], b1 = (float)b[1], d0 = (float)c[0], d1 = (float)c[1];
#pragma unroll
  for (uint k = 0; k < 8; k++) {
    float x = __shfl_sync(MSL_WARP_MASK, (k & 1u) ? a1 : a0, int(msl_lane_of(row, k)));
    float y0 = __shfl_sync(MSL_WARP_MASK, b0, int(msl_lane_of(k, col)));
    float y1 = __shfl_sync(MSL_WARP_MASK, b1, int(msl_lane_of(k, col)));
    d0 = ::fmaf(x, y0, d0);
    d1 = ::fmaf(x, y1, d1);
  }
  return vec<float, 2>(d0, d1);
}
#else
template <class TA, class TB, class TC>
vec<float, 2> msl_mma(vec<TA, 2>, vec<TB, 2>, vec<TC, 2>);
#endif
template <class TD, class TA, class TB, class TC>
MSL_F void simdgroup_multiply_accumulate(MSL_THR simdgroup_matrix<TD, 8, 8>& d, simdgroup_matrix<TA, 8, 8> a,
                                         simdgroup_matrix<TB, 8, 8> b, simdgroup_matrix<TC, 8, 8> c MSL_SITE) {
  vec<float, 2> r = msl_mma(a.e, b.e, c.e MSL_PASS);
  d.e = vec<TD, 2>(TD(r[0]), TD(r[1]));
}
template <class TD, class TA, class TB>
MSL_F void simdgroup_multiply(MSL_THR simdgroup_matrix<TD, 8, 8>& d, simdgroup_matrix<TA, 8, 8> a,
                              simdgroup_matrix<TB, 8, 8> b MSL_SITE) {
  vec<float, 2> r = msl_mma(a.e, b.e, vec<float, 2>(0.0f) MSL_PASS);
  d.e = vec<TD, 2>(TD(r[0]), TD(r[1]));
}
template <class T>
MSL_F simdgroup_matrix<T, 8, 8> operator*(simdgroup_matrix<T, 8, 8> a, simdgroup_matrix<T, 8, 8> b) {
  simdgroup_matrix<T, 8, 8> d;
  simdgroup_multiply(d, a, b);
  return d;
}
}  // namespace metal
}  // namespace mslns
#endif
