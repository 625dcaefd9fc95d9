#include "experts/reader_pool.h"

#include <algorithm>
#include <exception>
#include <iterator>
#include <utility>

namespace onnx_moe {

ReaderPool::ReaderPool(int64_t threads, Done done) : done_(std::move(done)) {
  for (int64_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

ReaderPool::~ReaderPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    demanded_.clear();
    speculative_.clear();
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ReaderPool::submit(int64_t load, const std::vector<ReadPiece>& pieces, Urgency urgency) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto shared = std::make_shared<Load>(Load{load, pieces.size(), pieces.size(), {}});
    std::deque<Task>& queue = urgency == Urgency::kDemand ? demanded_ : speculative_;
    for (const ReadPiece& piece : pieces) queue.push_back({piece, shared});
  }
  wake_.notify_one();  // who wakes the next: waking a thread takes microseconds, which are the caller's here
}

void ReaderPool::promote(int64_t load) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto others = [&](const Task& task) { return task.load->number != load; };
  const auto first = std::stable_partition(speculative_.begin(), speculative_.end(), others);
  std::move(first, speculative_.end(), std::back_inserter(demanded_));
  speculative_.erase(first, speculative_.end());
}

bool ReaderPool::cancel(int64_t load) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto of_load = [&](const Task& task) { return task.load->number == load; };
  const auto first = std::find_if(speculative_.begin(), speculative_.end(), of_load);
  if (first == speculative_.end()) return false;
  const auto waiting = std::count_if(first, speculative_.end(), of_load);
  if (static_cast<size_t>(waiting) < first->load->pieces) return false;
  speculative_.erase(std::remove_if(first, speculative_.end(), of_load), speculative_.end());
  return true;
}

ReaderPool::Task ReaderPool::take() {
  std::deque<Task>& queue = demanded_.empty() ? speculative_ : demanded_;
  Task task = std::move(queue.front());
  queue.pop_front();
  if (!demanded_.empty() || !speculative_.empty()) wake_.notify_one();
  return task;
}

void ReaderPool::work() {
  for (;;) {
    Task task;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || !demanded_.empty() || !speculative_.empty(); });
      if (stopping_) return;
      task = take();
    }
    std::string error;
    try {
      task.piece.file->read(task.piece.offset, task.piece.bytes, task.piece.needed, task.piece.target);
    } catch (const std::exception& failure) {
      error = failure.what();
    }
    finish(*task.load, error);
  }
}

void ReaderPool::finish(Load& load, const std::string& error) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (load.error.empty()) load.error = error;
    if (--load.pieces_left > 0) return;
  }
  done_(load.number, load.error);
}

}  // namespace onnx_moe
