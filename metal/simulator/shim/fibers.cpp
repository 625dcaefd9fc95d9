// fibers.cpp - CPU runtime: runs one threadgroup at a time (per worker) with
// every GPU thread as a fiber.
//
// A fiber runs until it reaches a simdgroup operation, a threadgroup barrier or
// its end. When no lane of a simdgroup can run, the lanes waiting at the same
// simdgroup operation (same call site) execute it together; when no thread of
// the threadgroup can run, the barrier opens. This gives a defined meaning to
// every legal kernel and lets the runtime report illegal ones:
//   * lanes of one simdgroup waiting at different operations  (divergence)
//   * threads waiting at different barriers                   (barrier divergence)
//   * out-of-bounds device and threadgroup accesses           (guard pages)
//   * threadgroup memory read before written                  (poisoned with 0xFF)
//   * order dependence between barriers                       (schedules 1 and 2)
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>
#include <atomic>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>
#if defined(MSL_TSAN)  // this file itself is compiled without instrumentation
#include <sanitizer/tsan_interface.h>
#endif
#include <ucontext.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#define MSL_CPU 1
#include "launch.h"
#include "msl.h"

namespace {
enum State : uint8_t { READY, AT_SIMD, AT_BARRIER, DONE };
struct Site {  // pos = line * 1024 + column
  const char* file;
  int pos;
  int line() const { return pos >> 10; }
  bool operator==(const Site& o) const { return pos == o.pos && !strcmp(file, o.file); }
};

#if defined(__x86_64__) && !defined(MSL_UCONTEXT)
typedef void* Context;  // the saved stack pointer
extern "C" void mslrt_swap(void** save, void* load);
asm(R"(
  .text
  .globl mslrt_swap
  .hidden mslrt_swap
  .type mslrt_swap,@function
mslrt_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size mslrt_swap,.-mslrt_swap
)");
inline void swap_to(Context& save, Context& load) { mslrt_swap(&save, load); }
void prepare(Context& c, char* top, void (*entry)()) {
  void** sp = (void**)((uintptr_t)top & ~(uintptr_t)63);
  *--sp = nullptr;  // keeps rsp % 16 == 8 at entry, as after a call
  *--sp = (void*)entry;
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  c = sp;
}
#else
typedef ucontext_t Context;
inline void swap_to(Context& save, Context& load) { swapcontext(&save, &load); }
void prepare(Context& c, char* top, void (*entry)()) {
  getcontext(&c);
  c.uc_stack.ss_size = 256 << 10;
  c.uc_stack.ss_sp = top - c.uc_stack.ss_size;
  c.uc_link = nullptr;
  makecontext(&c, entry, 0);
}
#endif

const size_t PAGE = 4096, STACK = 256 << 10;

struct Fiber {
  Context ctx;
  State state;
  mslns::msl_thread pos;
  mslrt_simd_fn fn;
  void* arg;
  const char* what;
  Site site;
  char* stack = nullptr;
#if defined(MSL_TSAN)
  void* tsan = nullptr;
#endif
};

// A block whose end touches an inaccessible page. Its size is rounded to 16 to
// keep vectors aligned; the padding is checked for stray writes.
struct Guarded {
  char *map = nullptr, *p = nullptr;
  size_t len = 0, size = 0;
  void make(size_t n) {
    drop();
    size = n;
    size_t body = (n + PAGE - 1) / PAGE * PAGE;
    len = body + 2 * PAGE;
    map = (char*)mmap(nullptr, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
      perror("mmap");
      abort();
    }
    if (body && mprotect(map + PAGE, body, PROT_READ | PROT_WRITE)) {
      perror("mprotect");
      abort();
    }
    p = map + PAGE + body - (n + 15) / 16 * 16;
    if (n) seal();
  }
  void seal() { memset(p + size, 0xA5, (16 - size % 16) % 16); }
  bool intact() const {
    for (size_t i = size; i % 16; i++)
      if ((unsigned char)p[i] != 0xA5) return false;
    return true;
  }
  void drop() {
    if (map) munmap(map, len);
    map = nullptr;
  }
};

struct TgVar {
  Guarded mem;
  uint64_t gen = 0;
  const char* name = nullptr;
};

struct Rng {  // xorshift64*
  uint64_t s;
  uint32_t next(uint32_t n) {
    s ^= s >> 12;
    s ^= s << 25;
    s ^= s >> 27;
    return (uint32_t)((s * 0x2545F4914F6CDD1Dull) >> 33) % n;
  }
};

struct Worker {
  MslLaunch* L;
  void** bufs;
  std::vector<Fiber> f;
  std::vector<TgVar> var;
  Guarded tgarg[8];
  void* tgptr[8];
  Context sched;
  Fiber* cur = nullptr;
  uint32_t n = 0, order[32], norder = 0, at = 0;
  uint64_t gen = 0, tg_bytes = 0;
  Rng rng;
  std::map<std::pair<uint32_t, int>, std::vector<bool>> seen;  // by simdgroup and buffer: bytes loaded already
  std::atomic<bool>* stop;
  bool failed = false;
  char altstack[64 << 10];
#if defined(MSL_TSAN)
  void* tsan_sched = nullptr;
  char barrier_token[2], start_token, end_token, simd_token[32][2];  // pairs: consecutive barriers alternate
  uint8_t barrier_gen = 0, simd_gen[32] = {};
#endif

  void fail(const char* msg) {  // first error wins
    if (!stop->exchange(true)) {
      snprintf(L->err, sizeof L->err, "%s", msg);
    }
    failed = true;
  }
  std::string where(const Fiber& t) {
    char b[160];
    snprintf(b, sizeof b, "thread (%u,%u,%u) of threadgroup (%u,%u,%u)", t.pos.tid.x, t.pos.tid.y, t.pos.tid.z,
             t.pos.tg.x, t.pos.tg.y, t.pos.tg.z);
    return b;
  }
  void note(const char* msg) {
    if (!L->note[0]) {
      strncpy(L->note, msg, sizeof L->note - 1);
      L->note[sizeof L->note - 1] = 0;
    }
  }

  void enter(Fiber& t) {
#if defined(MSL_TSAN)
    __tsan_switch_to_fiber(t.tsan, __tsan_switch_to_fiber_no_sync);
#endif
    cur = &t;
    swap_to(sched, t.ctx);
  }
  // From inside a fiber: go on with the next runnable lane of this simdgroup,
  // or with the scheduler when there is none.
  __attribute__((noinline)) void leave() {
    Fiber* me = cur;
    while (at < norder) {
      Fiber& t = f[order[at++]];
      if (t.state != READY) continue;
      cur = &t;
#if defined(MSL_TSAN)
      __tsan_switch_to_fiber(t.tsan, __tsan_switch_to_fiber_no_sync);
#endif
      swap_to(me->ctx, t.ctx);
      return;
    }
#if defined(MSL_TSAN)
    __tsan_switch_to_fiber(tsan_sched, __tsan_switch_to_fiber_no_sync);
#endif
    swap_to(me->ctx, sched);
  }
  void shuffle(uint32_t* a, uint32_t m) {
    for (uint32_t i = m; i > 1; i--) {
      uint32_t j = rng.next(i), t = a[i - 1];
      a[i - 1] = a[j];
      a[j] = t;
    }
  }

  bool run_simdgroup(uint32_t s) {  // true if any lane ran
    uint32_t lo = s * 32, hi = lo + 32 < n ? lo + 32 : n;
    bool ran = false;
    for (;;) {
      norder = 0;
      for (uint32_t i = lo; i < hi; i++)
        if (f[i].state == READY) order[norder++] = i;
      if (norder) {
        ran = true;
        if (L->schedule == 1)
          for (uint32_t i = 0; i < norder / 2; i++) {
            uint32_t t = order[i];
            order[i] = order[norder - 1 - i];
            order[norder - 1 - i] = t;
          }
        if (L->schedule >= 2) shuffle(order, norder);
        at = 1;
        enter(f[order[0]]);
        if (stop->load(std::memory_order_relaxed)) return true;
      }
      // Everybody waits. Pick the operation to execute: the earliest in the
      // source when lanes are spread over several.
      Fiber* first = nullptr;
      bool spread = false;
      uint32_t alive = 0, waiting = 0;
      for (uint32_t i = lo; i < hi; i++) {
        Fiber& t = f[i];
        if (t.state != DONE) alive++;
        if (t.state != AT_SIMD) continue;
        waiting++;
        if (!first)
          first = &t;
        else if (!(t.site == first->site) || t.fn != first->fn) {
          spread = true;
          if (t.site.pos < first->site.pos) first = &t;
        }
      }
      if (!first) return ran;
      void* args[32] = {};
      uint32_t mask = 0;
      for (uint32_t i = lo; i < hi; i++) {
        Fiber& t = f[i];
        if (t.state == AT_SIMD && t.site == first->site && t.fn == first->fn) {
          args[i - lo] = t.arg;
          mask |= 1u << (i - lo);
        }
      }
      if (spread || waiting != alive) {
        L->n_diverged++;
        if (!L->note[0] || L->strict) {
          char b[512];
          const Fiber* o = nullptr;
          for (uint32_t i = lo; i < hi; i++)
            if (f[i].state != DONE && !((mask >> (i - lo)) & 1)) {
              o = &f[i];
              break;
            }
          snprintf(b, sizeof b,
                   "%s:%d: %s executed by lanes %08x only, while lane %u waits at %s (%s:%d); simdgroup of %s",
                   first->site.file, first->site.line(), first->what, mask, o ? unsigned((o - &f[0]) & 31) : 0,
                   o ? o->what : "?", o ? o->site.file : "?", o ? o->site.line() : 0, where(f[lo]).c_str());
          if (L->strict) {
            fail(b);
            return true;
          }
          note(b);
        }
      } else if (alive != hi - lo || hi - lo != 32)
        L->n_partial++;
      L->n_simd++;
      first->fn(args, mask);
#if defined(MSL_TSAN)
      if (!strcmp(first->what, "simdgroup_barrier")) simd_gen[s & 31]++;
#endif
      for (uint32_t i = lo; i < hi; i++)
        if ((mask >> (i - lo)) & 1) f[i].state = READY;
    }
  }

  void run_threadgroup(uint32_t gx, uint32_t gy, uint32_t gz, void (*entry)()) {
    gen++;
    tg_bytes = 0;
    seen.clear();
    uint32_t g[3] = {gx, gy, gz}, d[3], full[3], total[3];
    for (int i = 0; i < 3; i++) {
      full[i] = L->tpg[i];
      total[i] = L->threads[i] ? L->threads[i] : L->grid[i] * L->tpg[i];
      uint32_t start = g[i] * full[i];
      d[i] = total[i] - start < full[i] ? total[i] - start : full[i];
    }
    n = d[0] * d[1] * d[2];
    if (f.size() < n) f.resize(n);
    for (int i = 0; i < 8; i++)
      if (L->tg_bytes[i]) {
        if (tgarg[i].size != L->tg_bytes[i]) tgarg[i].make(L->tg_bytes[i]);
        memset(tgarg[i].p, 0xFF, L->tg_bytes[i]);
        tgptr[i] = tgarg[i].p;
        tg_bytes += (L->tg_bytes[i] + 15) / 16 * 16;
      }
    for (uint32_t i = 0; i < n; i++) {
      Fiber& t = f[i];
      if (!t.stack) {
        t.stack = (char*)mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (t.stack == MAP_FAILED) {
          perror("mmap stack");
          abort();
        }
        mprotect(t.stack, PAGE, PROT_NONE);
#if defined(MSL_TSAN)
        t.tsan = __tsan_create_fiber(0);
#endif
      }
      mslns::msl_thread& p = t.pos;
      p.tid = {i % d[0], i / d[0] % d[1], i / (d[0] * d[1])};
      p.tg = {gx, gy, gz};
      p.tpg = {d[0], d[1], d[2]};
      p.full = {full[0], full[1], full[2]};
      p.grid = {L->grid[0], L->grid[1], L->grid[2]};
      p.threads = {total[0], total[1], total[2]};
      p.index = i;
      t.state = READY;
      prepare(t.ctx, t.stack + PAGE + STACK, entry);
    }
#if defined(MSL_TSAN)
    __tsan_release(&start_token);  // threadgroups are ordered: only races inside one are reported
#endif
    L->n_threads += n;
    uint32_t ns = (n + 31) / 32;
    std::vector<uint32_t> sg(ns);
    for (;;) {
      for (uint32_t i = 0; i < ns; i++) sg[i] = L->schedule == 1 ? ns - 1 - i : i;
      if (L->schedule >= 2) shuffle(sg.data(), ns);
      for (uint32_t s : sg) {
        run_simdgroup(s);
        if (stop->load(std::memory_order_relaxed)) return;
      }
      Fiber* b = nullptr;
      bool gone = false;
      for (uint32_t i = 0; i < n; i++) {
        Fiber& t = f[i];
        if (t.state == DONE) {
          gone = true;
          continue;
        }
        if (!b)
          b = &t;
        else if (!(t.site == b->site)) {
          char m[640];
          snprintf(m, sizeof m, "threadgroup_barrier divergence: %s waits at %s:%d, %s at %s:%d", where(*b).c_str(),
                   b->site.file, b->site.line(), where(t).c_str(), t.site.file, t.site.line());
          fail(m);  // undefined in MSL whatever the control flow
          return;
        }
      }
      if (!b) {
#if defined(MSL_TSAN)
        __tsan_acquire(&end_token);
#endif
        break;
      }
      if (gone) {
        char m[512];
        snprintf(m, sizeof m,
                 "%s:%d: threadgroup_barrier although some threads of the threadgroup have returned (%s waits)",
                 b->site.file, b->site.line(), where(*b).c_str());
        if (L->strict) {
          fail(m);
          return;
        }
        L->n_diverged++;
        note(m);
      }
      L->n_barrier++;
#if defined(MSL_TSAN)
      barrier_gen++;
#endif
      for (uint32_t i = 0; i < n; i++)
        if (f[i].state == AT_BARRIER) f[i].state = READY;
    }
    for (auto& v : var)
      if (v.gen == gen && !v.mem.intact()) {
        char m[256];
        snprintf(m, sizeof m, "write past the end of threadgroup variable '%s' (%zu bytes) in threadgroup (%u,%u,%u)",
                 v.name, v.mem.size, gx, gy, gz);
        fail(m);
      }
    for (int i = 0; i < 8; i++)
      if (L->tg_bytes[i] && !tgarg[i].intact()) fail("write past the end of a threadgroup argument");
    if (tg_bytes > L->tg_used) L->tg_used = tg_bytes;
    if (L->tg_limit && tg_bytes > L->tg_limit) {
      char m[128];
      snprintf(m, sizeof m, "threadgroup memory: %lu bytes, limit %u", (unsigned long)tg_bytes, L->tg_limit);
      fail(m);
    }
  }
};

__attribute__((tls_model("initial-exec"))) thread_local Worker* W;

void fiber_main() {
  Worker* w = W;
  Fiber* me = w->cur;
#if defined(MSL_TSAN)
  __tsan_acquire(&w->start_token);
  w->L->fn(w->bufs, w->tgptr, &me->pos);
  __tsan_release(&w->end_token);
#else
  w->L->fn(w->bufs, w->tgptr, &me->pos);
#endif
  me->state = DONE;
  w->leave();
  abort();  // a finished fiber is never resumed
}

// ---- faults: report the GPU thread, then abandon the run
struct sigaction old_segv, old_bus, old_fpe, old_ill, old_alrm;
struct Region {
  char *lo, *hi, *p;
  size_t size;
  int index;
  const char* name;
};
std::vector<Region>* regions;

void on_fault(int sig, siginfo_t* si, void* uc) {
  Worker* w = W;
  if (sig == SIGALRM && (!w || !w->cur)) return;
  if (!w || !w->cur) {  // not ours
    struct sigaction* o = sig == SIGSEGV ? &old_segv : sig == SIGBUS ? &old_bus : sig == SIGFPE ? &old_fpe : &old_ill;
    sigaction(sig, o, nullptr);
    return;
  }
  char m[640], *a = (char*)si->si_addr;
  std::string obj = "outside every buffer";
  if (sig == SIGSEGV || sig == SIGBUS) {
    char b[200];
    for (auto& r : *regions)
      if (a >= r.lo && a < r.hi) {
        snprintf(b, sizeof b, "byte %ld of buffer(%d), which has %zu bytes", (long)(a - r.p), r.index, r.size);
        obj = b;
      }
    for (auto& v : w->var)
      if (v.mem.map && a >= v.mem.map && a < v.mem.map + v.mem.len) {
        snprintf(b, sizeof b, "byte %ld of threadgroup variable '%s', which has %zu bytes", (long)(a - v.mem.p), v.name,
                 v.mem.size);
        obj = b;
      }
    for (int i = 0; i < 8; i++)
      if (w->tgarg[i].map && a >= w->tgarg[i].map && a < w->tgarg[i].map + w->tgarg[i].len) {
        snprintf(b, sizeof b, "byte %ld of threadgroup(%d), which has %zu bytes", (long)(a - w->tgarg[i].p), i,
                 w->tgarg[i].size);
        obj = b;
      }
    if (a >= w->cur->stack && a < w->cur->stack + PAGE) obj = "the fiber's stack guard (too much thread memory)";
    if (a == nullptr) obj = "null, or a misaligned vector access";
    snprintf(m, sizeof m, "invalid access by %s: address %p, %s", w->where(*w->cur).c_str(), (void*)a, obj.c_str());
  } else if (sig == SIGALRM)
    snprintf(m, sizeof m, "timeout in %s", w->where(*w->cur).c_str());
  else
    snprintf(m, sizeof m, "%s in %s", sig == SIGFPE ? "integer division by zero" : "illegal instruction",
             w->where(*w->cur).c_str());
#if defined(__x86_64__)
  Dl_info di;
  void* pc = (void*)((ucontext_t*)uc)->uc_mcontext.gregs[REG_RIP];
  if (dladdr(pc, &di)) w->L->fault_pc = (uint64_t)((char*)pc - (char*)di.dli_fbase);
#endif
  w->fail(m);
  w->norder = 0;
  w->at = 0;
  w->leave();  // never resumed
}
}  // namespace

extern "C" {
unsigned mslrt_lane(void) { return W->cur->pos.index & 31u; }

void mslrt_simd(mslrt_simd_fn fn, void* arg, const char* what, const char* file, int pos) {
  Fiber* t = W->cur;
  t->fn = fn;
  t->arg = arg;
  t->what = what;
  t->site = {file, pos};
  t->state = AT_SIMD;
#if defined(MSL_TSAN)
  // Only simdgroup_barrier orders memory between the lanes; the exchange of
  // registers itself does not.
  bool order = !strcmp(what, "simdgroup_barrier") && *(int*)arg;
  uint32_t g = (t->pos.index >> 5) & 31;
  void* tok = &W->simd_token[g][W->simd_gen[g] & 1];
  if (order) __tsan_release(tok);
  W->leave();
  if (order) __tsan_acquire(tok);
#else
  W->leave();
#endif
}
void mslrt_barrier(unsigned flags, const char* file, int pos) {
  Fiber* t = W->cur;
  t->what = "threadgroup_barrier";
  t->site = {file, pos};
  t->state = AT_BARRIER;
#if defined(MSL_TSAN)
  void* tok = &W->barrier_token[W->barrier_gen & 1];
  if (flags) __tsan_release(tok);  // mem_none orders execution, not memory
  W->leave();
  if (flags) __tsan_acquire(tok);
#else
  (void)flags;
  W->leave();
#endif
}
void* mslrt_tg_var(unsigned id, unsigned long size, int zero, const char* name) {
  Worker* w = W;
#if defined(MSL_TSAN)  // allocation and poisoning happen before the threadgroup starts
  void* self = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(w->tsan_sched, __tsan_switch_to_fiber_no_sync);
#endif
  if (w->var.size() <= id) w->var.resize(id + 1);
  TgVar& v = w->var[id];
  if (v.mem.size != size || !v.mem.map) v.mem.make(size), v.gen = 0;
  if (v.gen != w->gen) {
    v.gen = w->gen;
    v.name = name;
    memset(v.mem.p, zero ? 0 : 0xFF, size);  // 0xFF..: NaN in every floating type
    w->tg_bytes += (size + 15) / 16 * 16;
  }
#if defined(MSL_TSAN)
  __tsan_release(&w->start_token);
  __tsan_switch_to_fiber(self, __tsan_switch_to_fiber_no_sync);
  __tsan_acquire(&w->start_token);
#endif
  return v.mem.p;
}
void mslrt_assert_fail(const char* expr, const char* file, int line) {
  Worker* w = W;
  char m[800];
  snprintf(m, sizeof m, "%s:%d: assert(%s) failed in %s", file, line, expr, w->where(*w->cur).c_str());
  w->fail(m);
  w->norder = w->at = 0;
  w->leave();
}

// Called for every load of a kernel that is compiled with -fsanitize-coverage=trace-loads.
static void count_load(void* address, size_t bytes) {
  Worker* w = W;
  if (!w || !w->cur) return;
  char* const first = (char*)address;
  for (const Region& r : *regions) {
    if (first < r.p || first >= r.p + r.size) continue;
    std::vector<bool>& seen = w->seen[{w->cur->pos.index / 32, r.index}];
    if (seen.empty()) seen.resize(r.size);
    for (size_t i = first - r.p; i < first - r.p + bytes && i < r.size; i++) {
      w->L->loaded[r.index] += !seen[i];
      seen[i] = true;
    }
  }
}
void __sanitizer_cov_load1(void* address) { count_load(address, 1); }
void __sanitizer_cov_load2(void* address) { count_load(address, 2); }
void __sanitizer_cov_load4(void* address) { count_load(address, 4); }
void __sanitizer_cov_load8(void* address) { count_load(address, 8); }
void __sanitizer_cov_load16(void* address) { count_load(address, 16); }

int mslrt_launch(MslLaunch* L) {
  L->err[0] = L->note[0] = 0;
  L->n_threads = L->n_simd = L->n_barrier = L->n_diverged = L->n_partial = L->tg_used = L->fault_pc = 0;
  memset(L->loaded, 0, sizeof L->loaded);
  std::vector<Guarded> copy(L->nbufs);
  std::vector<void*> ptr(L->nbufs);
  std::vector<Region> reg;
  for (uint32_t i = 0; i < L->nbufs; i++) {
    ptr[i] = L->bufs[i];
    if (L->guard && L->bufs[i] && L->buf_bytes[i]) {
      copy[i].make(L->buf_bytes[i]);
      memcpy(copy[i].p, L->bufs[i], L->buf_bytes[i]);
      ptr[i] = copy[i].p;
      reg.push_back({copy[i].map, copy[i].map + copy[i].len, copy[i].p, copy[i].size, (int)i, nullptr});
    }
  }
  regions = &reg;
  struct sigaction sa;
  memset(&sa, 0, sizeof sa);
  sa.sa_sigaction = on_fault;
  sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &sa, &old_segv);
  sigaction(SIGBUS, &sa, &old_bus);
  sigaction(SIGFPE, &sa, &old_fpe);
  sigaction(SIGILL, &sa, &old_ill);
  itimerval tv = {}, none = {};
  bool timed = L->timeout && L->workers <= 1;
  if (timed) {
    sigaction(SIGALRM, &sa, &old_alrm);
    tv.it_value.tv_sec = L->timeout;
    setitimer(ITIMER_REAL, &tv, nullptr);
  }

  std::atomic<uint64_t> next{0};
  std::atomic<bool> stop{false};
  uint64_t groups = (uint64_t)L->grid[0] * L->grid[1] * L->grid[2];
  uint32_t nw = L->workers ? L->workers : 1;
  std::vector<MslLaunch> stats(nw, *L);
  auto body = [&](uint32_t wi) {
    Worker* w = new Worker();
    w->L = &stats[wi];
    w->bufs = ptr.data();
    w->stop = &stop;
    w->rng.s = L->seed * 0x9E3779B97F4A7C15ull + wi + 1;
    if (!w->rng.s) w->rng.s = 1;
    stack_t ss = {}, old = {};
    ss.ss_sp = w->altstack;
    ss.ss_size = sizeof w->altstack;
    sigaltstack(&ss, &old);
#if defined(MSL_TSAN)
    w->tsan_sched = __tsan_get_current_fiber();
#endif
    W = w;
#if defined(__x86_64__)
    unsigned csr = _mm_getcsr();
    if (L->ftz) _mm_setcsr(csr | 0x8040);
#endif
    for (;;) {
      uint64_t g = next++;
      if (g >= groups || stop) break;
      if (L->schedule == 1) g = groups - 1 - g;
      w->run_threadgroup(uint32_t(g % L->grid[0]), uint32_t(g / L->grid[0] % L->grid[1]),
                         uint32_t(g / ((uint64_t)L->grid[0] * L->grid[1])), fiber_main);
    }
#if defined(__x86_64__)
    _mm_setcsr(csr);
#endif
    W = nullptr;
    sigaltstack(&old, nullptr);
    for (auto& t : w->f)
      if (t.stack) munmap(t.stack, STACK + PAGE);
    for (auto& v : w->var) v.mem.drop();
    for (auto& v : w->tgarg) v.drop();
    delete w;
  };
  if (nw == 1)
    body(0);
  else {
    std::vector<std::thread> th;
    for (uint32_t i = 0; i < nw; i++) th.emplace_back(body, i);
    for (auto& t : th) t.join();
  }
  for (auto& s : stats) {
    L->n_threads += s.n_threads;
    for (int i = 0; i < 32; i++) L->loaded[i] += s.loaded[i];
    L->n_simd += s.n_simd;
    L->n_barrier += s.n_barrier;
    L->n_diverged += s.n_diverged;
    L->n_partial += s.n_partial;
    if (s.tg_used > L->tg_used) L->tg_used = s.tg_used;
    if (s.note[0] && !L->note[0]) memcpy(L->note, s.note, sizeof L->note);
    if (s.err[0] && !L->err[0]) {
      memcpy(L->err, s.err, sizeof L->err);
      L->fault_pc = s.fault_pc;
    }
  }
  if (timed) {
    setitimer(ITIMER_REAL, &none, nullptr);
    sigaction(SIGALRM, &old_alrm, nullptr);
  }
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaction(SIGFPE, &old_fpe, nullptr);
  sigaction(SIGILL, &old_ill, nullptr);
  for (uint32_t i = 0; i < L->nbufs; i++)
    if (copy[i].map) {
      if (!copy[i].intact() && !L->err[0])
        snprintf(L->err, sizeof L->err, "write past the end of buffer(%u), which has %zu bytes", i, copy[i].size);
      memcpy(L->bufs[i], copy[i].p, L->buf_bytes[i]);
      copy[i].drop();
    }
  return L->err[0] ? 1 : 0;
}
unsigned long mslrt_launch_size(void) { return sizeof(MslLaunch); }
}
