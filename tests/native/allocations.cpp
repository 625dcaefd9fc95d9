// Counts, when loaded before everything else, the allocations that libonnx_moe asks for from
// start_counting on, and the threads that anybody starts. tests/native/test_steady_state.py reads the counters.
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace {

std::atomic<long> allocations{0};
std::atomic<long> threads{0};
// Where the library's code lies; nowhere until start_counting.
std::atomic<uintptr_t> code_begin{0};
std::atomic<uintptr_t> code_end{0};

int find_library(dl_phdr_info* info, size_t, void*) {
  if (!std::strstr(info->dlpi_name, "libonnx_moe")) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr) & segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || !(segment.p_flags & PF_X)) continue;
    code_begin = info->dlpi_addr + segment.p_vaddr;
    code_end = code_begin + segment.p_memsz;
  }
  return 1;
}

void count(const void* caller) {
  const auto address = reinterpret_cast<uintptr_t>(caller);
  if (address >= code_begin && address < code_end) ++allocations;
}

}  // namespace

extern "C" int start_counting() { return dl_iterate_phdr(find_library, nullptr); }
extern "C" long counted_allocations() { return allocations; }
extern "C" long counted_threads() { return threads; }

// The library carries its own operator new, which calls malloc.
extern "C" void* __libc_malloc(size_t size);
extern "C" void* malloc(size_t size) {
  count(__builtin_return_address(0));
  return __libc_malloc(size);
}

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*body)(void*),
                              void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  ++threads;
  return create(thread, attributes, body, argument);
}
