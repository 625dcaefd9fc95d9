#include "experts/reader_pool.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <utility>

namespace onnx_moe {

ReaderPool::ReaderPool(int64_t threads, Done done) : done_(std::move(done)) {
  for (int64_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

ReaderPool::~ReaderPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    demand_.clear();
    speculative_.clear();
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ReaderPool::submit(int64_t load, const std::vector<ReadPiece>& pieces, Urgency urgency) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    loads_.push_back(std::make_unique<Load>(Load{load, pieces.size(), {}}));
    std::deque<Task>& queue = urgency == Urgency::kDemand ? demand_ : speculative_;
    for (const ReadPiece& piece : pieces) queue.push_back({piece, loads_.back().get()});
  }
  wake_.notify_all();
}

void ReaderPool::promote(int64_t load) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto of_load = [&](const Task& task) { return task.load->number == load; };
  std::copy_if(speculative_.begin(), speculative_.end(), std::back_inserter(demand_), of_load);
  speculative_.erase(std::remove_if(speculative_.begin(), speculative_.end(), of_load), speculative_.end());
}

bool ReaderPool::demand_is_waiting() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !demand_.empty();
}

void ReaderPool::work() {
  for (;;) {
    Task task;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || !demand_.empty() || !speculative_.empty(); });
      if (stopping_) return;
      std::deque<Task>& queue = demand_.empty() ? speculative_ : demand_;
      task = queue.front();
      queue.pop_front();
    }
    std::string error;
    try {
      task.piece.file->read(task.piece.offset, task.piece.bytes, task.piece.needed, task.piece.target);
    } catch (const std::exception& failure) {
      error = failure.what();
    }
    finish(task.load, error);
  }
}

void ReaderPool::finish(Load* load, const std::string& error) {
  std::unique_ptr<Load> finished;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (load->error.empty()) load->error = error;
    if (--load->pieces_left > 0) return;
    const auto at = std::find_if(loads_.begin(), loads_.end(), [&](const auto& each) { return each.get() == load; });
    finished = std::move(*at);
    loads_.erase(at);
  }
  done_(finished->number, finished->error);
}

}  // namespace onnx_moe
