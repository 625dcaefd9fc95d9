// msl_core.h - Metal Shading Language vocabulary as ordinary C++17.
//
// One header, three targets, selected by exactly one macro:
//   MSL_CPU    host C++ (clang or gcc); simdgroup operations go to the fiber
//              runtime in fibers.cpp.
//   MSL_CUDA   nvcc / NVRTC; simdgroup = warp, threadgroup memory = __shared__.
//   MSL_CHECK  clang "C++ for OpenCL 2021", -fsyntax-only; address spaces are
//              real, so a pointer into the wrong space is a type error.
//
// No standard headers are included on purpose: the user's program, this header
// and all its names live in namespace mslns, so neither libc's nor CUDA's
// ::float4, ::min, ::abs ... can collide with MSL's.
#ifndef MSL_CORE_H
#define MSL_CORE_H

#if (defined(MSL_CPU) + defined(MSL_CUDA) + defined(MSL_CHECK)) != 1
#error "define exactly one of MSL_CPU, MSL_CUDA, MSL_CHECK"
#endif

#if defined(MSL_CUDA)
#define MSL_F __device__ __forceinline__                     // run-time function
#define MSL_C __host__ __device__ __forceinline__ constexpr  // may be constant-evaluated
#define MSL_V __host__ __device__ __forceinline__
#else
#define MSL_F inline
#define MSL_C inline constexpr
#define MSL_V inline
#endif

#if defined(MSL_CUDA)
#define MSL_MEMCPY ::memcpy
#else
#define MSL_MEMCPY __builtin_memcpy
#endif

// Address spaces, used inside this header. Only the checker has real ones.
#if defined(MSL_CHECK)
#define MSL_DEV __global
#define MSL_CON __constant
#define MSL_TG __local
#define MSL_THR __private
#define MSL_EACH_RW(X) X(__global) X(__local) X(__private)
#define MSL_EACH_SHARED(X) X(__global) X(__local)
#define MSL_EACH_READ(X) X(__global) X(__local) X(__private) X(__constant)
#define MSL_CON_ONLY(...) __VA_ARGS__
#else
#define MSL_DEV
#define MSL_CON
#define MSL_TG
#define MSL_THR
#define MSL_EACH_RW(X) X()
#define MSL_EACH_SHARED(X) X()
#define MSL_EACH_READ(X) X()
#define MSL_CON_ONLY(...)
#endif

// Call-site identity for simdgroup/threadgroup operations (CPU diagnostics).
// A position is line * 1024 + column (gcc has no column: two operations on one
// line then count as the same one).
#if defined(__clang__)
#define MSL_LINE() (__builtin_LINE() * 1024 + (__builtin_COLUMN() & 1023))
#else
#define MSL_LINE() (__builtin_LINE() * 1024)
#endif
#if defined(MSL_CPU)
#define MSL_SITE0 const char *msl_file = __builtin_FILE(), int msl_line = MSL_LINE()
#define MSL_SITE , MSL_SITE0
#define MSL_HERE msl_file, msl_line
#else
#define MSL_SITE0
#define MSL_SITE
#define MSL_HERE
#endif

// A collective reads and writes the registers of other lanes: not a data race.
#if defined(MSL_CPU)
#define MSL_COLLECTIVE __attribute__((noinline, no_sanitize("thread")))
#endif

#if defined(MSL_CPU)
extern "C" {
typedef void (*mslrt_simd_fn)(void** args, unsigned active);
void mslrt_simd(mslrt_simd_fn fn, void* arg, const char* what, const char* file, int pos);
void mslrt_barrier(unsigned mem_flags, const char* file, int pos);
void* mslrt_tg_var(unsigned id, unsigned long size, int zero, const char* name);
unsigned mslrt_lane(void);
void mslrt_assert_fail(const char* expr, const char* file, int line);
}
#endif

#if defined(MSL_CHECK)
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#endif

namespace mslns {

// ---------------------------------------------------------------- scalars --
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;
typedef long ptrdiff_t;
typedef unsigned long uintptr_t;
typedef long intptr_t;

namespace metal {
using mslns::int16_t;
using mslns::int32_t;
using mslns::int64_t;
using mslns::int8_t;
using mslns::ptrdiff_t;
using mslns::size_t;
using mslns::uchar;
using mslns::uint;
using mslns::uint16_t;
using mslns::uint32_t;
using mslns::uint64_t;
using mslns::uint8_t;
using mslns::ulong;
using mslns::ushort;

// ------------------------------------------------------------ type traits --
template <class T, T v>
struct integral_constant {
  static constexpr T value = v;
  typedef T value_type;
  typedef integral_constant type;
  MSL_V constexpr operator T() const { return v; }
};
template <bool B>
using bool_constant = integral_constant<bool, B>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;
template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class U>
struct conditional {
  typedef T type;
};
template <class T, class U>
struct conditional<false, T, U> {
  typedef U type;
};
template <bool B, class T, class U>
using conditional_t = typename conditional<B, T, U>::type;
template <class T, class U>
struct is_same : false_type {};
template <class T>
struct is_same<T, T> : true_type {};
template <class T>
struct remove_const {
  typedef T type;
};
template <class T>
struct remove_const<const T> {
  typedef T type;
};
template <class T>
struct remove_volatile {
  typedef T type;
};
template <class T>
struct remove_volatile<volatile T> {
  typedef T type;
};
template <class T>
struct remove_cv {
  typedef typename remove_volatile<typename remove_const<T>::type>::type type;
};
template <class T>
struct remove_reference {
  typedef T type;
};
template <class T>
struct remove_reference<T&> {
  typedef T type;
};
template <class T>
struct remove_reference<T&&> {
  typedef T type;
};
template <class T>
struct remove_addrspace {
  typedef T type;
};
#if defined(MSL_CHECK)
template <class T>
struct remove_addrspace<__global T> {
  typedef T type;
};
template <class T>
struct remove_addrspace<__local T> {
  typedef T type;
};
template <class T>
struct remove_addrspace<__private T> {
  typedef T type;
};
template <class T>
struct remove_addrspace<__constant T> {
  typedef T type;
};
#endif
template <class T>
using remove_const_t = typename remove_const<T>::type;
template <class T>
using remove_volatile_t = typename remove_volatile<T>::type;
template <class T>
using remove_cv_t = typename remove_cv<T>::type;
template <class T>
using remove_reference_t = typename remove_reference<T>::type;
template <class T>
using remove_addrspace_t = typename remove_addrspace<T>::type;
template <class T>
struct remove_pointer {
  typedef T type;
};
template <class T>
struct remove_pointer<T*> {
  typedef T type;
};
template <class T>
using remove_pointer_t = typename remove_pointer<T>::type;
template <class T>
struct is_pointer : false_type {};
template <class T>
struct is_pointer<T*> : true_type {};
template <class T>
struct is_const : false_type {};
template <class T>
struct is_const<const T> : true_type {};
template <class T>
struct is_reference : false_type {};
template <class T>
struct is_reference<T&> : true_type {};
template <class T>
struct is_void : is_same<remove_cv_t<T>, void> {};
template <class T>
struct is_enum : bool_constant<__is_enum(T)> {};
template <class T>
struct is_class : bool_constant<__is_class(T)> {};
template <class T>
struct is_empty_ : bool_constant<__is_empty(T)> {};

}  // namespace metal
#if !defined(MSL_CHECK)  // where half is OpenCL's own
struct half;
#endif
struct bfloat;
namespace metal {
#if !defined(MSL_CHECK)
using mslns::half;
#endif
using mslns::bfloat;
template <class T>
struct is_int_impl : false_type {};
#define MSL_X(T) \
  template <>    \
  struct is_int_impl<T> : true_type {};
MSL_X(bool)
MSL_X(char)
MSL_X(signed char) MSL_X(unsigned char) MSL_X(short) MSL_X(unsigned short) MSL_X(int) MSL_X(unsigned) MSL_X(long)
    MSL_X(unsigned long)
#if !defined(MSL_CHECK)
        MSL_X(long long) MSL_X(unsigned long long)
#endif
#undef MSL_X
            template <class T>
            struct is_integral : is_int_impl<remove_cv_t<T>> {
};
template <class T>
struct is_floating_point
    : bool_constant<is_same<remove_cv_t<T>, float>::value || is_same<remove_cv_t<T>, half>::value ||
                    is_same<remove_cv_t<T>, bfloat>::value> {};
template <class T>
struct is_arithmetic : bool_constant<is_integral<T>::value || is_floating_point<T>::value> {};
template <class T>
struct is_scalar : bool_constant<is_arithmetic<T>::value || is_pointer<T>::value || __is_enum(T)> {};
template <class T, bool = is_integral<T>::value>
struct is_signed_i : bool_constant<(T(-1) < T(0))> {};
template <class T>
struct is_signed_i<T, false> : is_floating_point<T> {};
template <class T>
struct is_signed : is_signed_i<remove_cv_t<T>> {};
template <class T>
struct is_unsigned : bool_constant<is_integral<T>::value && !is_signed<T>::value> {};
template <class T>
struct make_unsigned {
  typedef T type;
};
template <>
struct make_unsigned<char> {
  typedef unsigned char type;
};
template <>
struct make_unsigned<signed char> {
  typedef unsigned char type;
};
template <>
struct make_unsigned<short> {
  typedef unsigned short type;
};
template <>
struct make_unsigned<int> {
  typedef unsigned type;
};
template <>
struct make_unsigned<long> {
  typedef unsigned long type;
};
template <class T>
using make_unsigned_t = typename make_unsigned<T>::type;
template <class T>
struct make_signed {
  typedef T type;
};
template <>
struct make_signed<unsigned char> {
  typedef signed char type;
};
template <>
struct make_signed<unsigned short> {
  typedef short type;
};
template <>
struct make_signed<unsigned> {
  typedef int type;
};
template <>
struct make_signed<unsigned long> {
  typedef long type;
};
template <class T>
using make_signed_t = typename make_signed<T>::type;
template <class T>
remove_reference_t<T>&& declval();
template <class F, class T>
struct is_conv_impl {
  static void take(T);
  template <class G>
  static constexpr auto t(int) -> decltype(take(declval<G>()), true) {
    return true;
  }
  template <class G>
  static constexpr bool t(long) {
    return false;
  }
  static constexpr bool value = t<F>(0);
};
template <class F, class T>
struct is_convertible : bool_constant<is_conv_impl<F, T>::value> {};
template <class... B>
struct disjunction : false_type {};
template <class B, class... R>
struct disjunction<B, R...> : bool_constant<B::value || disjunction<R...>::value> {};
template <class... B>
struct conjunction : true_type {};
template <class B, class... R>
struct conjunction<B, R...> : bool_constant<B::value && conjunction<R...>::value> {};
template <class B>
struct negation : bool_constant<!B::value> {};
template <class... B>
using _disjunction = disjunction<B...>;
template <class... B>
using _conjunction = conjunction<B...>;
#define MSL_X(n)     \
  template <class T> \
  constexpr bool n##_v = n<T>::value;
MSL_X(is_integral)
MSL_X(is_floating_point)
MSL_X(is_arithmetic) MSL_X(is_scalar) MSL_X(is_signed) MSL_X(is_unsigned) MSL_X(is_pointer) MSL_X(is_const)
    MSL_X(is_reference) MSL_X(is_void) MSL_X(is_enum) MSL_X(is_class)
#undef MSL_X
        template <class A, class B>
        constexpr bool is_same_v = is_same<A, B>::value;
template <class A, class B>
constexpr bool is_convertible_v = is_convertible<A, B>::value;
}  // namespace metal

// --------------------------------------------------- 16-bit floating point --
MSL_C unsigned msl_bits(float f) { return __builtin_bit_cast(unsigned, f); }
MSL_C float msl_float(unsigned u) { return __builtin_bit_cast(float, u); }
MSL_C float msl_inf() { return msl_float(0x7F800000u); }
MSL_C float msl_nan() { return msl_float(0x7FC00000u); }

// Round to nearest even; used wherever the compiler has no native conversion.
MSL_C unsigned short msl_f32_to_f16(float f) {
  unsigned u = msl_bits(f), s = (u >> 16) & 0x8000u, a = u & 0x7FFFFFFFu;
  if (a > 0x7F800000u) return (unsigned short)(s | 0x7E00u | ((a >> 13) & 0x1FFu));
  if (a >= 0x477FF000u) return (unsigned short)(s | 0x7C00u);  // rounds past 65504
  if (a >= 0x38800000u) {                                      // normal half
    unsigned r = a - 0x38000000u;
    return (unsigned short)(s | ((r + 0xFFFu + ((r >> 13) & 1u)) >> 13));
  }
  if (a < 0x33000000u) return (unsigned short)s;                         // underflows to 0
  unsigned e = a >> 23, m = (a & 0x7FFFFFu) | 0x800000u, sh = 126u - e;  // subnormal half
  unsigned q = m >> sh, rem = m & ((1u << sh) - 1u), hf = 1u << (sh - 1u);
  q += (rem > hf || (rem == hf && (q & 1u))) ? 1u : 0u;
  return (unsigned short)(s | q);
}
MSL_C float msl_f16_to_f32(unsigned short h) {
  unsigned s = (unsigned)(h & 0x8000u) << 16, e = (h >> 10) & 31u, m = h & 0x3FFu;
  if (e == 31u) return msl_float(s | 0x7F800000u | (m << 13));
  if (e != 0u) return msl_float(s | ((e + 112u) << 23) | (m << 13));
  float v = (float)m * msl_float(0x33800000u);  // m * 2^-24
  return s ? -v : v;
}
MSL_C unsigned short msl_f32_to_bf16(float f) {
  unsigned u = msl_bits(f);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (unsigned short)((u >> 16) | 0x40u);
  return (unsigned short)((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

#if !defined(MSL_CHECK)
struct half {
#if defined(MSL_CPU)
  _Float16 v;
  MSL_C static _Float16 enc(float f) { return (_Float16)f; }
  MSL_C static float dec(_Float16 h) { return (float)h; }
#else
  unsigned short v;
#if defined(MSL_CUDA)
#if defined(__CUDACC__)
  __device__ __forceinline__ static unsigned short enc_hw(float f) {
    unsigned short r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(f));
    return r;
  }
  __device__ __forceinline__ static float dec_hw(unsigned short h) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h));
    return r;
  }
#endif
  MSL_C static unsigned short enc(float f) {
#if defined(__CUDA_ARCH__)
    if (!__builtin_is_constant_evaluated()) return enc_hw(f);
#endif
    return msl_f32_to_f16(f);
  }
  MSL_C static float dec(unsigned short h) {
#if defined(__CUDA_ARCH__)
    if (!__builtin_is_constant_evaluated()) return dec_hw(h);
#endif
    return msl_f16_to_f32(h);
  }
#endif
#endif
  half() = default;
  MSL_V constexpr half(float f) : v(enc(f)) {}
  template <class I, class = metal::enable_if_t<metal::is_integral<I>::value>>
  MSL_V constexpr half(I i) : v(enc((float)i)) {}
  // templates, so that class types with several conversion functions stay unambiguous
  template <class B, class = metal::enable_if_t<metal::is_same<B, bfloat>::value>, class = void>
  MSL_V constexpr explicit half(B b) : v(enc((float)b)) {}
  MSL_V constexpr operator float() const { return dec(v); }
};
#endif
struct bfloat {
  unsigned short v;
  bfloat() = default;
  MSL_V constexpr explicit bfloat(float f) : v(msl_f32_to_bf16(f)) {}  // MSL: no implicit float -> bfloat
  template <class H, class = metal::enable_if_t<metal::is_same<H, half>::value>, class = void>
  MSL_V constexpr explicit bfloat(H h) : v(msl_f32_to_bf16((float)h)) {}
  template <class I, class = metal::enable_if_t<metal::is_integral<I>::value>>
  MSL_V constexpr bfloat(I i) : v(msl_f32_to_bf16((float)i)) {}
  MSL_V constexpr operator float() const { return msl_float((unsigned)v << 16); }
#if defined(MSL_CHECK)
  constexpr bfloat(const bfloat&) = default;
  bfloat& operator=(const bfloat&) = default;
  // clang turns "c ? lvalue : T(0)" into float when the lvalue has an address space; MSL_CPU keeps the strict rule
  bfloat& operator=(float f) { return *this = bfloat(f); }
  constexpr bfloat(const __constant bfloat& o) : v(o.v) {}
  constexpr operator float() const __constant { return msl_float((unsigned)v << 16); }
#endif
};

// Arithmetic of the 16-bit types rounds after every operation.
#define MSL_SF_OP(S, op)                                                            \
  MSL_C S operator op(S a, S b) { return S((float)a op(float) b); }                 \
  MSL_C float operator op(S a, float b) { return (float)a op b; }                   \
  MSL_C float operator op(float a, S b) { return a op(float) b; }                   \
  template <class I>                                                                \
  MSL_C metal::enable_if_t<metal::is_integral<I>::value, S> operator op(S a, I b) { \
    return S((float)a op(float) S(b));                                              \
  }                                                                                 \
  template <class I>                                                                \
  MSL_C metal::enable_if_t<metal::is_integral<I>::value, S> operator op(I a, S b) { \
    return S((float)S(a) op(float) b);                                              \
  }
#define MSL_SF_CMP(S, op)                                                              \
  MSL_C bool operator op(S a, S b) { return (float)a op(float) b; }                    \
  MSL_C bool operator op(S a, float b) { return (float)a op b; }                       \
  MSL_C bool operator op(float a, S b) { return a op(float) b; }                       \
  template <class I>                                                                   \
  MSL_C metal::enable_if_t<metal::is_integral<I>::value, bool> operator op(S a, I b) { \
    return (float)a op(float) b;                                                       \
  }                                                                                    \
  template <class I>                                                                   \
  MSL_C metal::enable_if_t<metal::is_integral<I>::value, bool> operator op(I a, S b) { \
    return (float)a op(float) b;                                                       \
  }
#define MSL_SF_ASG(S, op)                 \
  template <class X>                      \
  MSL_C S& operator op## = (S & a, X b) { \
    a = S(a op b);                        \
    return a;                             \
  }
#define MSL_SF(S)                                                                                                     \
  MSL_SF_OP(S, +)                                                                                                     \
  MSL_SF_OP(S, -)                                                                                                     \
  MSL_SF_OP(S, *) MSL_SF_OP(S, /) MSL_SF_CMP(S, ==) MSL_SF_CMP(S, !=) MSL_SF_CMP(S, <) MSL_SF_CMP(S, >)               \
      MSL_SF_CMP(S, <=) MSL_SF_CMP(S, >=) MSL_SF_ASG(S, +) MSL_SF_ASG(S, -) MSL_SF_ASG(S, *) MSL_SF_ASG(S, /) MSL_C S \
      operator-(S a) {                                                                                                \
    return S(-(float)a);                                                                                              \
  }                                                                                                                   \
  MSL_C S operator+(S a) { return a; }                                                                                \
  MSL_C bool operator!(S a) { return !(float)a; }                                                                     \
  MSL_C S& operator++(S& a) {                                                                                         \
    a = S((float)a + 1.0f);                                                                                           \
    return a;                                                                                                         \
  }                                                                                                                   \
  MSL_C S& operator--(S& a) {                                                                                         \
    a = S((float)a - 1.0f);                                                                                           \
    return a;                                                                                                         \
  }
#if !defined(MSL_CHECK)
MSL_SF(half)
#endif
MSL_SF(bfloat)
MSL_C float operator+(half a, bfloat b) { return (float)a + (float)b; }
MSL_C float operator*(half a, bfloat b) { return (float)a * (float)b; }
MSL_C float operator+(bfloat a, half b) { return (float)a + (float)b; }
MSL_C float operator*(bfloat a, half b) { return (float)a * (float)b; }
#undef MSL_SF
#undef MSL_SF_OP
#undef MSL_SF_CMP
#undef MSL_SF_ASG

// ---------------------------------------------------------------- vectors --
namespace metal {
template <class T, int N>
struct vec;
template <class T, int N, int... I>
struct swz;  // v.zx etc.: a view of the vector's own storage

template <class T>
struct vt {
  typedef T E;
  static constexpr int n = 0;
};
template <class T, int N>
struct vt<vec<T, N>> {
  typedef T E;
  static constexpr int n = N;
};
template <class T, int N, int... I>
struct vt<swz<T, N, I...>> {
  typedef T E;
  static constexpr int n = (int)sizeof...(I);
};
template <class T>
constexpr bool is_vec = vt<T>::n != 0;
template <class T>
struct is_vector : bool_constant<is_vec<T>> {};
template <class T>
using vt_E = typename vt<T>::E;

// i-th component; a scalar is every component of itself
template <class T>
MSL_C T msl_at(T s, int) {
  return s;
}
template <class T, int N>
MSL_C T msl_at(const vec<T, N>& v, int i) {
  return v.get(i);
}
template <class T, int N, int... I>
MSL_C T msl_at(const swz<T, N, I...>& v, int i) {
  return v.get(i);
}

// Component k of an argument list of scalars and vectors, e.g. float4(v.xy, 0, 1).
template <class... A>
struct msl_count {
  static constexpr int n = 0;
};
template <class A, class... R>
struct msl_count<A, R...> {
  static constexpr int w = is_vec<A> ? vt<A>::n : 1, n = w + msl_count<R...>::n;
};
template <class T, class A>
MSL_C T msl_pick(int k, const A& a) {
  return k < msl_count<A>::n ? (T)msl_at(a, k) : T(0);
}  // {a, b} leaves zeros
template <class T, class A, class B, class... R>
MSL_C T msl_pick(int k, const A& a, const B& b, const R&... r) {
  return k < msl_count<A>::n ? (T)msl_at(a, k) : msl_pick<T>(k - msl_count<A>::n, b, r...);
}
struct msl_list {};  // tag of the gathering constructor

#define MSL_ASSIGN_OPS(Self)     \
  template <class B>             \
  MSL_V Self& operator+=(B b) {  \
    return *this = *this + b;    \
  }                              \
  template <class B>             \
  MSL_V Self& operator-=(B b) {  \
    return *this = *this - b;    \
  }                              \
  template <class B>             \
  MSL_V Self& operator*=(B b) {  \
    return *this = *this * b;    \
  }                              \
  template <class B>             \
  MSL_V Self& operator/=(B b) {  \
    return *this = *this / b;    \
  }                              \
  template <class B>             \
  MSL_V Self& operator%=(B b) {  \
    return *this = *this % b;    \
  }                              \
  template <class B>             \
  MSL_V Self& operator&=(B b) {  \
    return *this = *this & b;    \
  }                              \
  template <class B>             \
  MSL_V Self& operator|=(B b) {  \
    return *this = *this | b;    \
  }                              \
  template <class B>             \
  MSL_V Self& operator^=(B b) {  \
    return *this = *this ^ b;    \
  }                              \
  template <class B>             \
  MSL_V Self& operator<<=(B b) { \
    return *this = *this << b;   \
  }                              \
  template <class B>             \
  MSL_V Self& operator>>=(B b) { \
    return *this = *this >> b;   \
  }

template <class T, int N, int... I>
struct swz {
  static constexpr int n = (int)sizeof...(I);
  typedef vec<T, n> V;
  T d[N == 3 ? 4 : N];
  swz() = default;
  MSL_V constexpr T get(int i) const {
    const int m[] = {I...};
    return d[m[i]];
  }
  MSL_V constexpr operator V() const { return V(d[I]...); }
  MSL_V swz& operator=(V o) {
    const int m[] = {I...};
    for (int i = 0; i < n; i++) d[m[i]] = o.get(i);
    return *this;
  }
  MSL_V swz& operator=(const swz& o) { return *this = V(o); }  // not a copy of the whole storage
  swz(const swz&) = default;
  MSL_ASSIGN_OPS(swz)
#if defined(MSL_CHECK)
  swz(const __constant swz& o) {
    for (int i = 0; i < N; i++) d[i] = o.d[i];
  }
  constexpr operator V() const __constant { return V(d[I]...); }
#endif
};

// Only swizzles that occur in the program are declared: the generator passes
// them as lists of S(name, indices...). All 336 of vec4 would be slow to compile.
#ifndef MSL_SWZ2
#define MSL_SWZ2(S)
#define MSL_SWZ3(S)
#define MSL_SWZ4(S)
#endif
#define MSL_S2(name, ...) swz<T, 2, __VA_ARGS__> name;
#define MSL_S3(name, ...) swz<T, 3, __VA_ARGS__> name;
#define MSL_S4(name, ...) swz<T, 4, __VA_ARGS__> name;

#define MSL_VEC_COMMON(N)                                                                              \
  vec() = default;                                                                                     \
  template <class S, class = enable_if_t<is_arithmetic<S>::value>>                                     \
  MSL_V constexpr vec(S s) : vec(msl_list(), (T)s) {}                                                  \
  template <class U, class = enable_if_t<!is_same<U, T>::value>>                                       \
  MSL_V constexpr explicit vec(vec<U, N> o) : vec(msl_list(), o) {}                                    \
  template <class U, int M, int... I, class = enable_if_t<sizeof...(I) == N && !is_same<U, T>::value>> \
  MSL_V constexpr explicit vec(swz<U, M, I...> o) : vec(msl_list(), o) {}                              \
  template <class A, class B, class... R,                                                              \
            class = enable_if_t<(msl_count<A, B, R...>::n <= N) && !is_same<A, msl_list>::value>>      \
  MSL_V constexpr vec(A a, B b, R... r) : vec(msl_list(), a, b, r...) {}                               \
  vec(const vec&) = default; /* trivial, so that vectors may live in unions */                         \
  MSL_V vec& operator=(const vec& o) {                                                                 \
    for (int i = 0; i < N; i++) d[i] = o.d[i];                                                         \
    return *this;                                                                                      \
  }                                                                                                    \
  MSL_V constexpr T get(int i) const { return d[i]; }                                                  \
  MSL_V T& operator[](int i) { return d[i]; }                                                          \
  MSL_V const T& operator[](int i) const { return d[i]; }                                              \
  MSL_ASSIGN_OPS(vec)                                                                                  \
  MSL_CON_ONLY(                                                                                        \
      vec(const __constant vec& o) {                                                                   \
        for (int i = 0; i < N; i++) d[i] = o.d[i];                                                     \
      } const __constant T&                                                                            \
      operator[](int i) const __constant { return d[i]; })                                             \
 private:                                                                                              \
  template <class... A>                                                                                \
  MSL_V static constexpr int at_(int i) {                                                              \
    return sizeof...(A) == 1 && msl_count<A...>::n == 1 ? 0 : i;                                       \
  }

template <class T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  union {
    struct {
      T x, y;
    };
    struct {
      T r, g;
    };
    T d[2];
    MSL_SWZ2(MSL_S2)
  };
  MSL_VEC_COMMON(2)
  template <class... A>
  MSL_V constexpr vec(msl_list, const A&... a) : x(msl_pick<T>(0, a...)), y(msl_pick<T>(at_<A...>(1), a...)) {}
};
template <class T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  union {
    struct {
      T x, y, z;
    };
    struct {
      T r, g, b;
    };
    T d[4];
    MSL_SWZ3(MSL_S3)
  };
  MSL_VEC_COMMON(3)
  template <class... A>
  MSL_V constexpr vec(msl_list, const A&... a)
      : x(msl_pick<T>(0, a...)), y(msl_pick<T>(at_<A...>(1), a...)), z(msl_pick<T>(at_<A...>(2), a...)) {}
};
template <class T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  union {
    struct {
      T x, y, z, w;
    };
    struct {
      T r, g, b, a;
    };
    T d[4];
    MSL_SWZ4(MSL_S4)
  };
  MSL_VEC_COMMON(4)
  template <class... A>
  MSL_V constexpr vec(msl_list, const A&... a_)
      : x(msl_pick<T>(0, a_...)),
        y(msl_pick<T>(at_<A...>(1), a_...)),
        z(msl_pick<T>(at_<A...>(2), a_...)),
        w(msl_pick<T>(at_<A...>(3), a_...)) {}
};
template <class T, int N>
struct packed_vec {  // packed_float3 etc.: scalar alignment
  T d[N];
  packed_vec() = default;
  MSL_V packed_vec(vec<T, N> v) {
    for (int i = 0; i < N; i++) d[i] = v.get(i);
  }
  MSL_V operator vec<T, N>() const {
    vec<T, N> v(0);
    for (int i = 0; i < N; i++) v[i] = d[i];
    return v;
  }
  MSL_V T& operator[](int i) { return d[i]; }
};

template <class T, size_t N>
struct array {
  T a_[N];
  MSL_V constexpr T& operator[](size_t i) { return a_[i]; }
  MSL_V constexpr const T& operator[](size_t i) const { return a_[i]; }
  MSL_V constexpr size_t size() const { return N; }
};

// Operators: vector op vector (same width and element type) or vector op scalar
// (the scalar is converted to the element type).
template <class A, class B, bool = (is_vec<A> || is_vec<B>)>
struct vop {};
template <class A, class B>
struct vop<A, B, true> {
  static constexpr bool va = is_vec<A>, vb = is_vec<B>;
  typedef vt_E<conditional_t<va, A, B>> E;
  static constexpr int n = va ? vt<A>::n : vt<B>::n;
  static constexpr bool ok = va && vb ? (vt<A>::n == vt<B>::n && is_same<vt_E<A>, vt_E<B>>::value)
                                      : is_arithmetic<conditional_t<va, B, A>>::value;
};
#define MSL_VOP(RT, op)                                                             \
  template <class A, class B, class P = vop<A, B>, class = enable_if_t<P::ok>>      \
  MSL_V constexpr vec<RT, P::n> operator op(A a, B b) {                             \
    typedef typename P::E E;                                                        \
    vec<RT, P::n> r(0);                                                             \
    for (int i = 0; i < P::n; i++) r[i] = (RT)((E)msl_at(a, i) op(E) msl_at(b, i)); \
    return r;                                                                       \
  }
#define MSL_ARI(op) MSL_VOP(typename P::E, op)
#define MSL_CMP(op) MSL_VOP(bool, op)
MSL_ARI(+)
MSL_ARI(-)
MSL_ARI(*) MSL_ARI(/) MSL_ARI(%) MSL_ARI(&) MSL_ARI(|) MSL_ARI(^) MSL_ARI(<<) MSL_ARI(>>) MSL_CMP(==) MSL_CMP(!=)
    MSL_CMP(<) MSL_CMP(>) MSL_CMP(<=) MSL_CMP(>=) MSL_CMP(&&) MSL_CMP(||)
#define MSL_UN(RT, op)                                               \
  template <class A, class = enable_if_t<is_vec<A>>>                 \
  MSL_V constexpr vec<RT, vt<A>::n> operator op(A a) {               \
    vec<RT, vt<A>::n> r(0);                                          \
    for (int i = 0; i < vt<A>::n; i++) r[i] = (RT)(op msl_at(a, i)); \
    return r;                                                        \
  }
        MSL_UN(vt_E<A>, -) MSL_UN(vt_E<A>, ~) MSL_UN(bool, !) template <class A, class = enable_if_t<is_vec<A>>>
        MSL_V constexpr A operator+(A a) {
  return a;
}
#undef MSL_VOP
#undef MSL_ARI
#undef MSL_CMP
#undef MSL_UN

#define MSL_SCALARS(X) \
  X(bool) X(char) X(uchar) X(short) X(ushort) X(int) X(uint) X(long) X(ulong) X(float) X(half) X(bfloat)
#define MSL_X(T)                          \
  typedef vec<T, 2> T##2;                 \
  typedef vec<T, 3> T##3;                 \
  typedef vec<T, 4> T##4;                 \
  typedef packed_vec<T, 2> packed_##T##2; \
  typedef packed_vec<T, 3> packed_##T##3; \
  typedef packed_vec<T, 4> packed_##T##4;
MSL_SCALARS(MSL_X)
#undef MSL_X
}  // namespace metal

using metal::vec;
#define MSL_X(T)              \
  using metal::T##2;          \
  using metal::T##3;          \
  using metal::T##4;          \
  using metal::packed_##T##2; \
  using metal::packed_##T##3; \
  using metal::packed_##T##4;
MSL_SCALARS(MSL_X)
#undef MSL_X

// ----------------------------------------------------------------- as_type --
namespace metal {
template <class T>
struct msl_value {
  typedef T type;
};
template <class T, int N, int... I>
struct msl_value<swz<T, N, I...>> {
  typedef vec<T, (int)sizeof...(I)> type;
};
template <class T>
using msl_value_t = typename msl_value<T>::type;
}  // namespace metal
template <class To, class From>
MSL_V constexpr To as_type(From v_) {
  typedef metal::msl_value_t<From> V;
  static_assert(sizeof(To) == sizeof(V), "as_type: sizes differ");
#if defined(MSL_CHECK)
  return To();
#else
  if constexpr (metal::is_vec<To> || metal::is_vec<V>) {
    V v(v_);
    To r;
    MSL_MEMCPY((void*)&r, (const void*)&v, sizeof(To));
    return r;
  } else {
    return __builtin_bit_cast(To, v_);
  }
#endif
}
}  // namespace mslns
#endif
