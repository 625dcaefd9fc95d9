#include "experts/reader_pool.h"

#include <algorithm>
#include <exception>
#include <utility>

namespace onnx_moe {

ReaderPool::ReaderPool(int64_t threads, Done done) : done_(std::move(done)) {
  for (int64_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

ReaderPool::~ReaderPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    queue_.clear();
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ReaderPool::submit(int64_t load, const std::vector<ReadPiece>& pieces) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    loads_.push_back(std::make_unique<Load>(Load{load, pieces.size(), {}}));
    for (const ReadPiece& piece : pieces) queue_.push_back({piece, loads_.back().get()});
  }
  wake_.notify_all();
}

void ReaderPool::work() {
  for (;;) {
    Task task;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      task = queue_.front();
      queue_.pop_front();
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
