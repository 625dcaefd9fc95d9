#include "experts/reader_pool.h"

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
    const auto shared = std::make_shared<Load>(Load{load, pieces.size(), {}});
    for (const ReadPiece& piece : pieces) queue_.push_back({piece, shared});
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
