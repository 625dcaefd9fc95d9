// What the machine can do: bytes read a second, and operations of its widest dot products and multiply-adds.
// Compiled by bench/machine.py for the machine that it runs on.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__AVX2__)
#include <immintrin.h>
#if defined(__AVX512F__)
#define REGISTER(n) "%%zmm" #n
constexpr int kBytes = 64;
#else
#define REGISTER(n) "%%ymm" #n
constexpr int kBytes = 32;
#endif
#define FMA(n) "vfmadd231ps " REGISTER(14) ", " REGISTER(15) ", " REGISTER(n) "\n"
#if defined(__AVX512VNNI__)
#define DOT(n) "vpdpbusd " REGISTER(14) ", " REGISTER(15) ", " REGISTER(n) "\n"
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
#define DOT(n) "%{vex%} vpdpbusd " REGISTER(14) ", " REGISTER(15) ", " REGISTER(n) "\n"
#else
// No instruction for dot products: products of bytes, summed as words.
#define DOT(n) \
  "vpmaddubsw " REGISTER(14) ", " REGISTER(15) ", " REGISTER(13) "\n" \
  "vpaddw " REGISTER(13) ", " REGISTER(n) ", " REGISTER(n) "\n"
#endif
#endif

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Of `threads` threads that begin together; to start them is not counted.
template <typename Body>
double seconds(int threads, const Body& body) {
  std::atomic<int> waiting{threads};
  std::atomic<int> running{threads};
  const auto begin = [&](int i) {
    --waiting;
    while (waiting > 0) std::this_thread::yield();
    body(i);
    --running;
  };
  std::vector<std::thread> pool;
  for (int i = 1; i < threads; ++i) pool.emplace_back(begin, i);
  while (waiting > 1) std::this_thread::yield();
  const double start = now();
  begin(0);
  while (running > 0) std::this_thread::yield();
  const double end = now();
  for (auto& thread : pool) thread.join();
  return end - start;
}

uint64_t sum(const uint64_t* data, size_t words) {
  uint64_t sums[32] = {};
  for (size_t i = 0; i + 32 <= words; i += 32) {
    for (int j = 0; j < 32; ++j) sums[j] += data[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t value : sums) total += value;
  return total;
}

volatile uint64_t sink;
constexpr long kRounds = 4'000'000;

}  // namespace

// Seconds to read `bytes` bytes with a plain loop, each thread a part of its own.
extern "C" double bench_read(const void* data, int64_t bytes, int threads) {
  const auto* words = static_cast<const uint64_t*>(data);
  const size_t part = static_cast<size_t>(bytes) / 8 / static_cast<size_t>(threads);
  return seconds(threads, [&](int i) { sink = sum(words + static_cast<size_t>(i) * part, part); });
}

#if defined(__AVX2__)
#define TEN(OP) OP(0) OP(1) OP(2) OP(3) OP(4) OP(5) OP(6) OP(7) OP(8) OP(9)
#define CLEAR(n) "vxorps %%xmm" #n ", %%xmm" #n ", %%xmm" #n "\n"
// All registers start at zero: what others left in them may be subnormal, a hundred times slower.
#define LOOP(OP)                                                                                                       \
  __asm__ volatile(TEN(CLEAR) CLEAR(14) CLEAR(15) "1:\n" TEN(OP) "dec %0\njnz 1b\n"                                    \
                   : "+r"(n)::"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm13", \
                     "xmm14", "xmm15", "cc")
#endif

// Operations a second of float multiply-adds, of all threads together; 0 where this file knows no way to measure it.
extern "C" double bench_fma(int threads) {
#if defined(__AVX2__)
  const double time = seconds(threads, [](int) {
    long n = kRounds;
    LOOP(FMA);
  });
  return threads * kRounds * 10.0 * (kBytes / 4) * 2 / time;
#else
  return 0;
#endif
}

// The same of int8 dot products.
extern "C" double bench_dot(int threads) {
#if defined(__AVX2__)
  const double time = seconds(threads, [](int) {
    long n = kRounds;
    LOOP(DOT);
  });
  return threads * kRounds * 10.0 * kBytes * 2 / time;
#else
  return 0;
#endif
}

// The same of products of bfloat16 tiles; 0 also where the system does not let a process use them.
extern "C" double bench_tiles(int threads) {
#if defined(__AMX_BF16__) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return 0;
  const double time = seconds(threads, [](int) {
    struct Shapes {
      uint8_t bytes[64];
    };
    Shapes found;  // by Torch, which relies on it
    __asm__ volatile("sttilecfg %0" : "=m"(found));
    Shapes shapes{{1}};  // the first palette: 16 rows of 64 bytes
    for (int tile = 0; tile < 8; ++tile) {
      shapes.bytes[16 + 2 * tile] = 64;
      shapes.bytes[48 + tile] = 16;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
    for (long n = 0; n < kRounds / 4; ++n) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    if (found.bytes[0] == 0) {
      __asm__ volatile("tilerelease");
    } else {
      __asm__ volatile("ldtilecfg %0" ::"m"(found));
    }
  });
  return threads * (kRounds / 4) * 4.0 * 16 * 16 * 32 * 2 / time;
#else
  (void)threads;
  return 0;
#endif
}
