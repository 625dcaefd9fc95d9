#include "experts/object_cache.h"

#include <limits>
#include <utility>

#include "core/error.h"

namespace onnx_moe {

namespace {

constexpr int64_t kFirstNumbers = 64;

}  // namespace

// Objects in the order in which their experts would go.
class ObjectCache::Policy final : public CachePolicy {
 public:
  explicit Policy(const ObjectCache& cache) : cache_(cache) {}

  bool goes_before(int64_t a, int64_t b) const override {
    const auto expert = [&](int64_t object) { return cache_.objects_[static_cast<size_t>(object)].expert; };
    return cache_.experts_->goes_before(expert(a), expert(b));
  }

 private:
  const ObjectCache& cache_;
};

// The set counts objects, the budget bytes: its capacity is out of reach.
ObjectCache::ObjectCache(const ExpertBank& bank, int64_t budget_bytes, std::unique_ptr<CachePolicy> policy)
    : bank_(bank),
      budget_bytes_(budget_bytes),
      experts_(std::move(policy)),
      visited_(static_cast<size_t>(bank.experts)),
      residents_({1, kFirstNumbers}, std::numeric_limits<int64_t>::max(), 0, std::make_unique<Policy>(*this)) {
  require(budget_bytes >= 0, "the cache has a budget of ", budget_bytes, " bytes: it must not be negative");
}

void ObjectCache::visit(int64_t layer, const int32_t* experts, int64_t count) {
  require(layer >= 0 && layer < bank_.layers, "layer ", layer, " is out of range: layers are numbered 0 to ",
          bank_.layers - 1);
  for (int64_t i = 0; i < count; ++i) {
    require(experts[i] >= 0 && experts[i] < bank_.experts, "expert ", experts[i], " of layer ", layer,
            " is out of range: experts are numbered 0 to ", bank_.experts - 1);
  }
  experts_->visit(layer);
  for (int64_t i = 0; i < count; ++i) {
    const auto expert = static_cast<size_t>(experts[i]);
    if (!visited_[expert]) experts_->use(bank_.key(layer, experts[i]));
    visited_[expert] = true;
  }
  for (int64_t i = 0; i < count; ++i) visited_[static_cast<size_t>(experts[i])] = false;
  for (size_t object = 0; object < objects_.size(); ++object) {
    if (bank_.layer_of(objects_[object].expert) == layer) residents_.reorder(static_cast<int64_t>(object));
  }
}

std::optional<int64_t> ObjectCache::insert(int64_t layer, int64_t expert, int64_t bytes,
                                           std::vector<int64_t>& evicted) {
  require(layer >= 0 && layer < bank_.layers && expert >= 0 && expert < bank_.experts, "expert ", expert, " of layer ",
          layer, " is out of range: the cache is for ", bank_.layers, " layers of ", bank_.experts, " experts");
  require(bytes >= 0, "an object of expert ", expert, " of layer ", layer, " has ", bytes,
          " bytes: they must not be negative");
  if (bytes > budget_bytes_ - leased_bytes_) return std::nullopt;
  evict_down_to(budget_bytes_ - bytes, evicted);
  const int64_t object = free_number();
  at(object) = {bank_.key(layer, expert), bytes};
  bytes_ += bytes;
  residents_.use(object);
  residents_.insert(object);
  return object;
}

void ObjectCache::use(int64_t object) {
  check(object);
  residents_.use(object);
}

void ObjectCache::lease(int64_t object) {
  check(object);
  if (!residents_.leased(object)) leased_bytes_ += at(object).bytes;
  residents_.lease(object);
}

void ObjectCache::release(int64_t object) {
  check(object);
  residents_.release(object);
  if (!residents_.leased(object)) leased_bytes_ -= at(object).bytes;
}

void ObjectCache::erase(int64_t object) {
  check(object);
  residents_.erase(object);
  bytes_ -= at(object).bytes;
  free_.push_back(object);
}

void ObjectCache::resize(int64_t budget_bytes, std::vector<int64_t>& evicted) {
  require(budget_bytes >= 0, "the cache's new budget is ", budget_bytes, " bytes: it must not be negative");
  budget_bytes_ = budget_bytes;
  evict_down_to(budget_bytes, evicted);
}

void ObjectCache::check(int64_t object) const {
  const bool known = object >= 0 && object < static_cast<int64_t>(objects_.size());
  require(known && residents_.contains(object), "object ", object, " is not in the cache");
}

void ObjectCache::evict_down_to(int64_t bytes, std::vector<int64_t>& evicted) {
  while (bytes_ > bytes) {
    const std::optional<int64_t> victim = residents_.victim(0);
    if (!victim) return;  // the rest is leased
    erase(*victim);
    evicted.push_back(*victim);
  }
}

int64_t ObjectCache::free_number() {
  if (free_.empty()) {
    const auto number = static_cast<int64_t>(objects_.size());
    objects_.push_back({});
    residents_.widen(number + 1);
    return number;
  }
  const int64_t number = free_.back();
  free_.pop_back();
  return number;
}

}  // namespace onnx_moe
