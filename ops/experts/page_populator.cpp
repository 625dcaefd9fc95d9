#include "experts/page_populator.h"

#include <sys/mman.h>

#include "experts/expert_file.h"

namespace onnx_moe {

namespace {

#if !defined(MADV_POPULATE_READ) && defined(__linux__)
constexpr int kPopulateRead = 22;  // Linux 5.14; an error before, which changes nothing
#elif defined(MADV_POPULATE_READ)
constexpr int kPopulateRead = MADV_POPULATE_READ;
#else
constexpr int kPopulateRead = MADV_WILLNEED;
#endif

// Beyond this the thread is late, and the pages are being touched already.
constexpr size_t kMostWaiting = 256;

}  // namespace

PagePopulator::PagePopulator() : thread_([this] { work(); }) {}

PagePopulator::~PagePopulator() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void PagePopulator::will_need(const uint8_t* memory, int64_t bytes) {
  constexpr uintptr_t kPage = ExpertFile::kAlignment;
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const Pages pages{begin / kPage * kPage, begin + static_cast<uintptr_t>(bytes)};
  ::madvise(reinterpret_cast<void*>(pages.begin), pages.end - pages.begin, MADV_WILLNEED);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (queue_.size() >= kMostWaiting) queue_.pop_front();
    queue_.push_back(pages);
  }
  wake_.notify_one();
}

void PagePopulator::work() {
  for (;;) {
    Pages pages{};
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      pages = queue_.front();
      queue_.pop_front();
    }
    ::madvise(reinterpret_cast<void*>(pages.begin), pages.end - pages.begin, kPopulateRead);
  }
}

}  // namespace onnx_moe
