// The residency engine's reads ahead: what a layer's call makes of the next layer's experts.
#include <algorithm>
#include <iterator>

#include "core/error.h"
#include "experts/residency_engine.h"

namespace onnx_moe {

bool ResidencyEngine::asks_next_gate() {
  return options_.prefetch == PrefetchSignalKind::kNextGate && mode() == ResidencyMode::kPool;
}

// Routers are all there before the first call: no lock.
const RouterChoice* ResidencyEngine::next_choice(int64_t first_layer) const {
  const auto next = routers_.upper_bound(first_layer);
  return next == routers_.end() ? nullptr : &next->second;
}

void ResidencyEngine::next_gate_chose(int64_t first_layer, const int32_t* experts, int64_t count) {
  const Lock lock(mutex_);
  if (!speculation_) return;
  const auto next = routers_.upper_bound(first_layer);
  if (next == routers_.end()) return;
  const auto after = std::next(next);
  const int64_t end = std::min(after == routers_.end() ? bank_.layers : after->first, bank_.layers);
  for (int64_t layer = next->first; layer < end; ++layer) {
    std::vector<int32_t>& choice = next_gate_choice_[static_cast<size_t>(layer)];
    choice.clear();
    std::copy_if(experts, experts + count, std::back_inserter(choice),
                 [&](int32_t expert) { return expert < experts_.layers[static_cast<size_t>(layer)].num_experts; });
  }
}

void ResidencyEngine::adopt(const Speculation::Entry& entry) {
  Place& ahead = place(entry.place);
  Place& here = place(entry.key);
  here.slot = ahead.slot;
  here.state = ahead.state;
  PrefetchCounts& counts = speculation_->counts(bank_.layer_of(entry.key));
  if (ahead.state == State::kResident) {
    ++counts.timely;
    ahead = Place{};
    release(entry.key);  // nothing is left to load
    return;
  }
  ++counts.late;
  ahead.moves_to = entry.key;
  ahead.slot = nullptr;
  readers_->promote(entry.place);
}

void ResidencyEngine::drop(const Speculation::Entry& entry) {
  PrefetchCounts& counts = speculation_->counts(bank_.layer_of(entry.key));
  Place& ahead = place(entry.place);
  if (ahead.state != State::kLoading) {
    ++counts.wasted;
    empty(entry.place);
  } else if (readers_->cancel(entry.place)) {
    ++counts.cancelled;
    statistics_.bytes_read -= expert_bytes(entry.key);
    statistics_.speculative_bytes -= expert_bytes(entry.key);
    empty(entry.place);
  } else {
    ++counts.wasted;
    ahead.unwanted = true;
  }
}

void ResidencyEngine::read_ahead(int64_t layer, const std::vector<int64_t>& keys) {
  std::vector<int32_t> experts;
  for (const int64_t key : keys) experts.push_back(static_cast<int32_t>(bank_.expert_of(key)));
  const auto next = static_cast<size_t>((layer + 1) % bank_.layers);
  const std::vector<int32_t>& choice = next_gate_choice_[next];
  const RoutedCall call{layer, experts.data(), static_cast<int64_t>(experts.size()), choice.data(),
                        static_cast<int64_t>(choice.size())};
  const int64_t likely = std::max(experts_.layers[next].top_k, call.count);
  const std::vector<int64_t> wanted = speculation_->observe(call, likely, *residents_);
  next_gate_choice_[next].clear();
  for (const int64_t key : wanted) {
    const std::optional<int64_t> place = free_place(bank_.size() + kMostStaging, counts_.speculative);
    if (!place) return;
    try {
      load(*place, key, Urgency::kSpeculation);
    } catch (const Error&) {  // no memory to spare: whoever needs the expert will say so
      return;
    }
    statistics_.speculative_bytes += expert_bytes(key);
    speculation_->put({key, *place});
  }
}

}  // namespace onnx_moe
