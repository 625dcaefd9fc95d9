// sanitized_main.cpp - runs one launch described by a job file; used for sanitizer
// builds, which cannot be loaded into Python. Layout written by runner.py:
//   MslLaunch | per buffer: uint64 size, bytes (16-byte aligned)
// The file is mapped shared, so results and statistics are written in place.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>
extern "C" {
int mslrt_launch(void* launch);
void MSL_ENTRY(void**, void**, const void*);
}
struct Head {  // the beginning of MslLaunch
  void (*fn)(void**, void**, const void*);
  void** bufs;
  const uint64_t* buf_bytes;
  uint32_t nbufs;
};
int main(int argc, char** argv) {
  int fd = argc > 2 ? open(argv[1], O_RDWR) : -1;
  struct stat st;
  if (fd < 0 || fstat(fd, &st)) {
    perror("job");
    return 2;
  }
  char* base = (char*)mmap(nullptr, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) {
    perror("mmap");
    return 2;
  }
  Head* h = (Head*)base;
  std::vector<void*> p(h->nbufs + 1);
  std::vector<uint64_t> n(h->nbufs + 1);
  char* at = base + atol(argv[2]);  // size of MslLaunch, rounded to 16
  for (uint32_t i = 0; i < h->nbufs; i++) {
    n[i] = *(uint64_t*)at;
    p[i] = n[i] ? at + 16 : nullptr;
    at += 16 + (n[i] + 15) / 16 * 16;
  }
  h->fn = MSL_ENTRY;
  h->bufs = p.data();
  h->buf_bytes = n.data();
  mslrt_launch(base);
  return 0;
}
