// The experts of one call out of the pool: those that are there at once, the others as they arrive.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "experts/residency_engine.h"

namespace onnx_moe {

class PooledCall final : public ExpertSource {
 public:
  PooledCall(ResidencyEngine& engine, int64_t layer, const int32_t* expert_ids, int64_t count);
  ~PooledCall() override;

  ExpertSet next() override;
  const ExpertData* resident(size_t projection) const override { return data_.get() + projection * num_experts_; }

 private:
  using State = ResidencyEngine::State;

  struct Staged {
    int64_t place;
    int64_t key;
  };

  PooledCall(ResidencyEngine& engine, int64_t layer);

  void reserve(size_t experts);
  void prefetch(const int32_t* expert_ids, int64_t count) const;
  void note_keys();
  void count_visit();
  // Gets what was read ahead for this layer: what is missing becomes this call's, the rest is dropped.
  void take_over();
  // Leases or loads the missing experts, in order, until nobody can give up a slot.
  void admit();
  bool admit(int64_t key);
  void stage();
  void take_ready();
  void hand_out(int64_t place, int64_t key);
  void release_all();
  void free_computed();
  void wait(ResidencyEngine::Lock& lock);
  bool done() const;

  ResidencyEngine& engine_;
  int64_t layer_;
  size_t projections_;
  size_t num_experts_;
  int64_t busy_ns_ = 0;  // in here, waits for reads left out
  Visit visit_;
  std::vector<int64_t> keys_;  // all of the visit's, in the order of their first token
  size_t next_missing_ = 0;
  size_t next_bypassing_ = 0;
  std::vector<Speculation::Entry> ahead_;  // read for this call, not in the cache yet
  std::vector<int64_t> leased_;            // keys
  std::vector<int64_t> awaited_;           // of these: not handed out yet
  std::vector<Staged> loading_;            // in the staging area, not handed out yet
  std::vector<Staged> computed_;           // handed out with the last set
  std::vector<int32_t> set_;
  std::unique_ptr<ExpertData[]> data_;  // by projection and expert; set for those handed out
};

}  // namespace onnx_moe
