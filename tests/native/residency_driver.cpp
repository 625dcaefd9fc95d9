// Threads that use the expert cache at once, built with a sanitizer by test_residency_threads.py. Every byte of an
// expert says whose it is, so that a slot which is reused too early, or read into late, shows in what a call sees.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/error.h"
#include "experts/residency_engine.h"

namespace {

using namespace onnx_moe;

constexpr int64_t kLayers = 3;
constexpr int64_t kExperts = 12;
constexpr int64_t kTopK = 2;
constexpr int64_t kCodeBytes = 5000;  // no multiple of a page
constexpr int64_t kScaleBytes = 300;
constexpr int64_t kLayerBytes = kExperts * (kCodeBytes + kScaleBytes);

uint8_t mark(int64_t layer, int64_t expert) { return static_cast<uint8_t>(1 + layer * kExperts + expert); }

void write_model(const char* path) {
  std::ofstream file(path, std::ios::binary);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    for (const int64_t bytes : {kCodeBytes, kScaleBytes}) {
      for (int64_t expert = 0; expert < kExperts; ++expert) {
        file << std::string(static_cast<size_t>(bytes), static_cast<char>(mark(layer, expert)));
      }
    }
  }
}

// As ONNX Runtime maps external data.
class MappedModel {
 public:
  explicit MappedModel(const char* path) {
    const int descriptor = ::open(path, O_RDONLY);
    memory_ = ::mmap(nullptr, kLayers * kLayerBytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
    ::close(descriptor);
    if (memory_ == MAP_FAILED) fail("cannot map ", path);
  }
  ~MappedModel() { ::munmap(memory_, kLayers * kLayerBytes); }
  MappedModel(const MappedModel&) = delete;
  MappedModel& operator=(const MappedModel&) = delete;

  void add_layers(ResidencyEngine& engine) const {
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const uint8_t* const codes = static_cast<const uint8_t*>(memory_) + layer * kLayerBytes;
      ExpertLayer described{"layer", kExperts, kTopK, {}};
      described.projections.push_back(
          {{"weights", codes, kCodeBytes}, {"scales", codes + kExperts * kCodeBytes, kScaleBytes}});
      engine.add_layer(std::move(described));
    }
  }

 private:
  void* memory_;
};

bool holds(const uint8_t* data, int64_t bytes, uint8_t expected) {
  for (int64_t i = 0; i < bytes; ++i) {
    if (data[i] != expected) return false;
  }
  return true;
}

// Returns how many experts were wrong or missing.
int64_t call(ResidencyEngine& engine, int64_t layer, const std::vector<int32_t>& ids) {
  int64_t wrong = 0;
  std::vector<bool> seen(kExperts);
  const std::unique_ptr<ExpertSource> source = engine.open(layer, ids.data(), static_cast<int64_t>(ids.size()));
  for (ExpertSet set = source->next(); set.count > 0; set = source->next()) {
    for (int64_t i = 0; i < set.count; ++i) {
      const int32_t expert = set.experts[i];
      const ExpertData& data = source->resident(0)[expert];
      const uint8_t expected = mark(layer, expert);
      wrong += seen[static_cast<size_t>(expert)] || !holds(data.codes, kCodeBytes, expected) ||
               !holds(data.scales, kScaleBytes, expected);
      seen[static_cast<size_t>(expert)] = true;
    }
  }
  for (const int32_t id : ids) wrong += !seen[static_cast<size_t>(id)];
  return wrong;
}

void work(ResidencyEngine& engine, unsigned seed, std::atomic<int64_t>& wrong) {
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> ids(random() % 8 == 0 ? 3 * kExperts : kTopK);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % kExperts);
    const int64_t layer = round % kLayers;
    if (random() % 16 == 0) {  // a call that ends early, with loads under way
      engine.open(layer, ids.data(), static_cast<int64_t>(ids.size()));
      continue;
    }
    wrong += call(engine, layer, ids);
  }
}

}  // namespace

int main(int, char** arguments) {
  write_model(arguments[1]);
  ResidencyOptions options;
  options.mode = ResidencyMode::kPool;
  options.budget = CacheBudget::parse("30%");
  options.policy = parse_eviction_policy(arguments[2]);
  options.direct_io = parse_direct_io(arguments[3]);
  const MappedModel model(arguments[1]);
  std::atomic<int64_t> wrong{0};
  {
    ResidencyEngine engine(options);
    model.add_layers(engine);
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 4; ++seed) threads.emplace_back([&, seed] { work(engine, seed, wrong); });
    for (const char* const budget : {"100%", "25%", "60%", "30%", "100%", "22%"}) {
      engine.set_budget(budget);
      std::printf("%s\n", engine.statistics().to_json().c_str());
    }
    for (std::thread& thread : threads) thread.join();
    std::printf("%s\n", engine.statistics().to_json().c_str());
    // Destroyed with reads under way.
    const std::vector<int32_t> all{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    engine.open(0, all.data(), static_cast<int64_t>(all.size()));
  }
  std::printf("wrong: %lld\n", static_cast<long long>(wrong));
  return wrong == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
