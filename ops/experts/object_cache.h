// A cache of objects that lie elsewhere, such as arrays of a host language: of each it knows the expert and the size.
// Who leaves is decided by the policies, and in the set, that the engine uses.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "experts/bank.h"
#include "experts/cache_policy.h"
#include "experts/resident_set.h"

namespace onnx_moe {

class ObjectCache {
 public:
  // `policy` orders experts of `bank`. Objects go in the order of their experts; those of one expert, and of experts
  // that are alike, least recently used first. budget_bytes: of all objects together.
  ObjectCache(const ExpertBank& bank, int64_t budget_bytes, std::unique_ptr<CachePolicy> policy);
  ObjectCache(const ObjectCache&) = delete;
  ObjectCache& operator=(const ObjectCache&) = delete;

  // A call of `layer` chose experts[count], repetitions allowed: what the policy learns from. It is no use of objects.
  void visit(int64_t layer, const int32_t* experts, int64_t count);

  // Takes an object in and returns its number; those that leave for it are appended to `evicted`, and their numbers may
  // be given to others later. Nothing, and nobody leaves, when it has no room beside what is leased.
  std::optional<int64_t> insert(int64_t layer, int64_t expert, int64_t bytes, std::vector<int64_t>& evicted);
  void use(int64_t object);
  // A leased object stays. Leases count.
  void lease(int64_t object);
  void release(int64_t object);
  void erase(int64_t object);  // it must not be leased

  // Another budget from now on. Leased objects stay beyond it, until they are released and somebody needs room.
  void resize(int64_t budget_bytes, std::vector<int64_t>& evicted);

  int64_t bytes() const { return bytes_; }

 private:
  struct Object {
    int64_t expert = 0;  // a key of the bank
    int64_t bytes = 0;
  };
  class Policy;

  Object& at(int64_t object) { return objects_[static_cast<size_t>(object)]; }
  void check(int64_t object) const;
  void evict_down_to(int64_t bytes, std::vector<int64_t>& evicted);
  int64_t free_number();

  ExpertBank bank_;
  int64_t budget_bytes_;
  int64_t bytes_ = 0;
  int64_t leased_bytes_ = 0;
  std::unique_ptr<CachePolicy> experts_;
  std::vector<bool> visited_;    // by expert of a layer; all false between calls of visit
  std::vector<Object> objects_;  // by number
  std::vector<int64_t> free_;    // numbers that nobody has
  ResidentSet residents_;        // last: its policy reads the above
};

}  // namespace onnx_moe
