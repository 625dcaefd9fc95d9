// Threads that read experts.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "experts/expert_file.h"

namespace onnx_moe {

// A part of a load, for one thread.
struct ReadPiece {
  const ExpertFile* file;
  int64_t offset;
  int64_t bytes;
  int64_t needed;
  uint8_t* target;
};

// What a call waits for goes before what might be wanted.
enum class Urgency { kDemand, kSpeculation };

class ReaderPool {
 public:
  // Called by a reader when the last piece of a load has been read, with the first error, or an empty text.
  using Done = std::function<void(int64_t load, const std::string& error)>;

  ReaderPool(int64_t threads, Done done);
  // Drops what no reader has begun; those loads are never done.
  ~ReaderPool();
  ReaderPool(const ReaderPool&) = delete;
  ReaderPool& operator=(const ReaderPool&) = delete;

  // `load`: the caller's number for it, of no other load under way. No reader begins a speculative piece while a
  // demanded one waits.
  void submit(int64_t load, const std::vector<ReadPiece>& pieces, Urgency urgency);
  // A speculative load is demanded now: what is left of it joins the demanded pieces.
  void promote(int64_t load);
  // Takes a speculative load back; false when a reader has begun it, which then is done in the end.
  bool cancel(int64_t load);

 private:
  struct Load {
    int64_t number;
    size_t pieces;
    size_t pieces_left;
    std::string error;
  };
  struct Task {
    ReadPiece piece;
    std::shared_ptr<Load> load;
  };

  void work();
  Task take();
  void finish(Load& load, const std::string& error);

  Done done_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Task> demanded_;
  std::deque<Task> speculative_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace onnx_moe
