// The C API over caches of the caller's objects.
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "c_api_guard.h"
#include "core/error.h"
#include "experts/object_cache.h"
#include "onnx_moe.h"

struct onnx_moe_object_cache {
  onnx_moe_object_cache(const onnx_moe::ExpertBank& bank, int64_t budget_bytes,
                        std::unique_ptr<onnx_moe::CachePolicy> policy)
      : objects(bank, budget_bytes, std::move(policy)) {}

  mutable std::mutex mutex;
  onnx_moe::ObjectCache objects;
};

namespace onnx_moe {

namespace {

std::unique_ptr<CachePolicy> make_policy(const ExpertBank& bank, int32_t policy, double decay) {
  if (policy == ONNX_MOE_LRU) return std::make_unique<LruPolicy>();
  require(policy == ONNX_MOE_DECAYED_LFU, "cache policy ", policy,
          " does not suit a cache of objects: use ONNX_MOE_LRU or ONNX_MOE_DECAYED_LFU");
  return std::make_unique<DecayedLfuPolicy>(bank, decay);
}

// Runs body(objects of the cache), alone.
template <typename Body>
int with_objects(onnx_moe_object_cache* cache, Body&& body) {
  return guarded([&] {
    const std::lock_guard<std::mutex> lock(cache->mutex);
    body(cache->objects);
  });
}

// Likewise with a list of objects that leave.
template <typename Body>
int with_evicted(onnx_moe_object_cache* cache, onnx_moe_objects* evicted, Body&& body) {
  thread_local std::vector<int64_t> numbers;
  numbers.clear();
  const int status = with_objects(cache, [&](ObjectCache& objects) { body(objects, numbers); });
  *evicted = {static_cast<int64_t>(numbers.size()), numbers.data()};
  return status;
}

}  // namespace

}  // namespace onnx_moe

using onnx_moe::ObjectCache;

int onnx_moe_object_cache_create(int64_t num_layers, int64_t num_experts, int64_t budget_bytes, int32_t policy,
                                 double decay, onnx_moe_object_cache** out) {
  return onnx_moe::guarded([&] {
    onnx_moe::require(num_layers >= 1 && num_experts >= 1, "the cache is for ", num_layers, " layers of ", num_experts,
                      " experts: both must be at least 1");
    const onnx_moe::ExpertBank bank{num_layers, num_experts};
    *out = std::make_unique<onnx_moe_object_cache>(bank, budget_bytes, onnx_moe::make_policy(bank, policy, decay))
               .release();
  });
}

void onnx_moe_object_cache_free(onnx_moe_object_cache* cache) { std::unique_ptr<onnx_moe_object_cache>(cache).reset(); }

int onnx_moe_object_cache_visit(onnx_moe_object_cache* cache, int64_t layer, const int32_t* experts, int64_t count) {
  return onnx_moe::with_objects(cache, [&](ObjectCache& objects) { objects.visit(layer, experts, count); });
}

int onnx_moe_object_cache_insert(onnx_moe_object_cache* cache, int64_t layer, int64_t expert, int64_t bytes,
                                 int64_t* object, onnx_moe_objects* evicted) {
  return onnx_moe::with_evicted(cache, evicted, [&](ObjectCache& objects, std::vector<int64_t>& numbers) {
    *object = objects.insert(layer, expert, bytes, numbers).value_or(-1);
  });
}

int onnx_moe_object_cache_use(onnx_moe_object_cache* cache, int64_t object) {
  return onnx_moe::with_objects(cache, [&](ObjectCache& objects) { objects.use(object); });
}

int onnx_moe_object_cache_lease(onnx_moe_object_cache* cache, int64_t object) {
  return onnx_moe::with_objects(cache, [&](ObjectCache& objects) { objects.lease(object); });
}

int onnx_moe_object_cache_release(onnx_moe_object_cache* cache, int64_t object) {
  return onnx_moe::with_objects(cache, [&](ObjectCache& objects) { objects.release(object); });
}

int onnx_moe_object_cache_erase(onnx_moe_object_cache* cache, int64_t object) {
  return onnx_moe::with_objects(cache, [&](ObjectCache& objects) { objects.erase(object); });
}

int onnx_moe_object_cache_resize(onnx_moe_object_cache* cache, int64_t budget_bytes, onnx_moe_objects* evicted) {
  return onnx_moe::with_evicted(cache, evicted, [&](ObjectCache& objects, std::vector<int64_t>& numbers) {
    objects.resize(budget_bytes, numbers);
  });
}

int64_t onnx_moe_object_cache_bytes(const onnx_moe_object_cache* cache) {
  const std::lock_guard<std::mutex> lock(cache->mutex);
  return cache->objects.bytes();
}
