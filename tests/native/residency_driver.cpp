// Threads that use the expert cache at once, built with a sanitizer by test_residency_threads.py.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "residency_model.h"

namespace {

using namespace onnx_moe;

constexpr ModelShape kShape{3, 12, 2, 5000, 300};  // sizes that are no multiples of a page

bool holds(const uint8_t* data, int64_t bytes, uint8_t expected) {
  for (int64_t i = 0; i < bytes; ++i) {
    if (data[i] != expected) return false;
  }
  return true;
}

// Returns how many experts were wrong or missing.
int64_t call(ResidencyEngine& engine, int64_t layer, const std::vector<int32_t>& ids) {
  int64_t wrong = 0;
  std::vector<bool> seen(kShape.experts);
  const std::unique_ptr<ExpertSource> source = engine.open(layer, ids.data(), static_cast<int64_t>(ids.size()));
  for (ExpertSet set = source->next(); set.count > 0; set = source->next()) {
    for (int64_t i = 0; i < set.count; ++i) {
      const int32_t expert = set.experts[i];
      const ExpertData& data = source->resident(0)[expert];
      const uint8_t expected = kShape.mark(layer, expert);
      wrong += seen[static_cast<size_t>(expert)] || !holds(data.codes, kShape.code_bytes, expected) ||
               !holds(data.scales, kShape.scale_bytes, expected);
      seen[static_cast<size_t>(expert)] = true;
    }
  }
  for (const int32_t id : ids) wrong += !seen[static_cast<size_t>(id)];
  return wrong;
}

void work(ResidencyEngine& engine, unsigned seed, std::atomic<int64_t>& wrong) {
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> ids(random() % 8 == 0 ? 3 * kShape.experts : kShape.top_k);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % kShape.experts);
    const int64_t layer = round % kShape.layers;
    if (random() % 16 == 0) {  // a call that ends early, with loads under way
      engine.open(layer, ids.data(), static_cast<int64_t>(ids.size()));
      continue;
    }
    wrong += call(engine, layer, ids);
  }
}

void run_at_once(ResidencyEngine& engine, std::atomic<int64_t>& wrong) {
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) threads.emplace_back([&, seed] { work(engine, seed, wrong); });
  for (const char* const budget : {"100%", "25%", "60%", "30%", "100%", "25%"}) {
    engine.set_budget(budget);
    std::printf("%s\n", engine.statistics().to_json().c_str());
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%s\n", engine.statistics().to_json().c_str());
}

// The mapped experts, with pages asked for ahead.
void run_page_cache(const MappedModel& model) {
  ResidencyOptions options;
  options.mode = ResidencyMode::kPageCache;
  ResidencyEngine engine(options);
  model.add_layers(engine);
  const std::vector<int32_t> ids{3, 1, 3, 7};
  for (int64_t layer = 0; layer < kShape.layers; ++layer) {
    if (engine.open(layer, ids.data(), static_cast<int64_t>(ids.size()))) fail("mapped experts need no source");
  }
}

}  // namespace

// Arguments: a path for the model, the policy, direct_io, the prefetch signal.
int main(int, char** arguments) {
  write_model(arguments[1], kShape);
  ResidencyOptions options;
  options.mode = ResidencyMode::kPool;
  options.budget = CacheBudget::parse("30%");
  options.policy = parse_eviction_policy(arguments[2]);
  options.direct_io = parse_direct_io(arguments[3]);
  options.prefetch = parse_prefetch_signal("prefetch", arguments[4]);
  options.prefetch_precision = 0;
  options.poison = true;
  const MappedModel model(arguments[1], kShape);
  run_page_cache(model);
  std::atomic<int64_t> wrong{0};
  {
    ResidencyEngine engine(options);
    model.add_layers(engine);
    run_at_once(engine, wrong);
    // Destroyed with reads under way.
    const std::vector<int32_t> all{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    engine.open(0, all.data(), static_cast<int64_t>(all.size()));
  }
  std::printf("wrong: %lld\n", static_cast<long long>(wrong));
  return wrong == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
