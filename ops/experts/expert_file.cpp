#include "experts/expert_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "core/error.h"

namespace onnx_moe {

namespace {

#if defined(__APPLE__)
int64_t modified_ns(const struct stat& status) {
  return status.st_mtimespec.tv_sec * 1000000000LL + status.st_mtimespec.tv_nsec;
}
#else
int64_t modified_ns(const struct stat& status) { return status.st_mtim.tv_sec * 1000000000LL + status.st_mtim.tv_nsec; }
#endif

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};

// File systems that take no direct reads say so at opening or at the first read.
int open_direct(const std::string& path) {
#if defined(O_DIRECT)
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (descriptor < 0) return -1;
  const std::unique_ptr<void, FreeMemory> page(std::aligned_alloc(ExpertFile::kAlignment, ExpertFile::kAlignment));
  if (page && ::pread(descriptor, page.get(), ExpertFile::kAlignment, 0) > 0) return descriptor;
  ::close(descriptor);
#else
  (void)path;
#endif
  return -1;
}

}  // namespace

ExpertFile::ExpertFile(const FileLocation& mapped, bool direct) : path_(mapped.path) {
  buffered_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  require(buffered_ >= 0, "cannot open ", path_, ", which holds experts: ", std::strerror(errno));
  struct stat status{};
  const bool same = ::fstat(buffered_, &status) == 0 && status.st_ino == mapped.inode;
  if (!same) {
    ::close(buffered_);
    fail(path_, " is not the file any more that the session has mapped: create the session anew");
  }
  size_ = status.st_size;
  modified_ns_ = modified_ns(status);
  if (direct) direct_ = open_direct(path_);
}

ExpertFile::~ExpertFile() {
  ::close(buffered_);
  if (direct_ >= 0) ::close(direct_);
}

void ExpertFile::check_unchanged(int64_t offset) const {
  struct stat status{};
  require(::fstat(buffered_, &status) == 0 && status.st_size == size_ && modified_ns(status) == modified_ns_,
          "reading ", path_, " at offset ", offset,
          ": the file was written to after the session had opened it; create the session ", "anew");
}

void ExpertFile::read(int64_t offset, int64_t bytes, int64_t needed, uint8_t* target) const {
  check_unchanged(offset);
  const int descriptor = direct() ? direct_ : buffered_;
  for (int64_t done = 0; done < needed;) {
    const ssize_t count =
        ::pread(descriptor, target + done, static_cast<size_t>(bytes - done), static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    require(count >= 0, "reading ", path_, " at offset ", offset + done, ": ", std::strerror(errno));
    require(count > 0, "reading ", path_, " at offset ", offset + done, ": the file ends there, ", needed - done,
            " bytes early; restore the file");
    done += count;
  }
}

}  // namespace onnx_moe
