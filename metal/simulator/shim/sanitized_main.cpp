// Runs one launch that a job file describes, for builds with a sanitizer, which Python cannot load. sanitizer.py writes
// the file: MslLaunch, then for each buffer its size (16 bytes) and its bytes, each padded to 16. It is mapped shared,
// so that results are in it afterwards.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "launch.h"

extern "C" void msl_entry(void** buffers, const mslns::msl_thread* thread);

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: program job bytes_of_launch\n");
    return 2;
  }
  const int file = open(arguments[1], O_RDWR);
  struct stat status;
  if (file < 0 || fstat(file, &status) != 0) {
    std::perror(arguments[1]);
    return 2;
  }
  void* const job = mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (job == MAP_FAILED) {
    std::perror(arguments[1]);
    return 2;
  }
  auto& launch = *static_cast<MslLaunch*>(job);
  std::vector<void*> buffers(kMostBuffers);
  std::vector<uint64_t> sizes(kMostBuffers);
  char* at = static_cast<char*>(job) + std::atol(arguments[2]);
  for (uint32_t i = 0; i < launch.buffer_count; ++i) {
    sizes[i] = *reinterpret_cast<uint64_t*>(at);
    buffers[i] = sizes[i] ? at + 16 : nullptr;
    at += 16 + (sizes[i] + 15) / 16 * 16;
  }
  launch.function = msl_entry;
  launch.buffers = buffers.data();
  launch.buffer_bytes = sizes.data();
  mslrt_launch(&launch);
  return 0;
}
