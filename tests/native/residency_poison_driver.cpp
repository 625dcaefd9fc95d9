// The cache owns the bytes that products are made of: poison in slots that hold no expert any more changes nothing,
// poison in slots that a call has leased changes its output. Built by test_residency_faults.py.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "core/expert_gemm.h"
#include "core/threaded_host.h"
#include "residency_model.h"

namespace onnx_moe {

extern const Kernel kReferenceKernel;

}  // namespace onnx_moe

namespace {

using namespace onnx_moe;

constexpr int64_t kRows = 24;
constexpr int64_t kColumns = 64;
// Marks are scales about 1.
constexpr ModelShape kShape{3, 20, 2, kRows * kColumns / 2, kRows * kColumns / 32, 100};

// Overwrites the experts of each set before the call computes with them.
class PoisonedSource final : public ExpertSource {
 public:
  explicit PoisonedSource(std::unique_ptr<ExpertSource> source) : source_(std::move(source)) {}
  ExpertSet next() override {
    const ExpertSet set = source_->next();
    for (int64_t i = 0; i < set.count; ++i) {
      const ExpertData& expert = source_->resident(0)[set.experts[i]];
      std::memset(const_cast<uint8_t*>(expert.codes), 0x35, static_cast<size_t>(kShape.code_bytes));
    }
    return set;
  }
  const ExpertData* resident(size_t projection) const override { return source_->resident(projection); }

 private:
  std::unique_ptr<ExpertSource> source_;
};

class Layer final : public ExpertProvider {
 public:
  Layer(ResidencyEngine& engine, int64_t layer, bool poisoned) : engine_(engine), layer_(layer), poisoned_(poisoned) {}
  std::unique_ptr<ExpertSource> open(const int32_t* expert_ids, int64_t count) override {
    std::unique_ptr<ExpertSource> source = engine_.open(layer_, expert_ids, count);
    return poisoned_ ? std::make_unique<PoisonedSource>(std::move(source)) : std::move(source);
  }

 private:
  ResidencyEngine& engine_;
  int64_t layer_;
  bool poisoned_;
};

// The products of some calls; `engine` null: with the mapped experts.
std::vector<float> products(const MappedModel& model, ResidencyEngine* engine, bool poison_leased) {
  std::mt19937 random(1);
  std::vector<float> all;
  for (int call = 0; call < 120; ++call) {
    const int64_t layer = call % kShape.layers;
    const int64_t tokens = call % 40 == 0 ? 30 : 1;
    std::vector<float> x(static_cast<size_t>(tokens * kColumns));
    for (float& value : x) value = static_cast<float>(random() % 1000) / 500 - 1;
    std::vector<int32_t> ids(static_cast<size_t>(tokens * kShape.top_k));
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % kShape.experts);
    std::vector<float> y(ids.size() * kRows);
    const ExpertWeights weights{{Format::kMxfp4, 32},
                                WeightLayout::kRows,
                                kShape.experts,
                                kRows,
                                kColumns,
                                model.codes(layer),
                                model.scales(layer),
                                nullptr,
                                1,
                                ElementType::kFloat,
                                nullptr};
    std::unique_ptr<Layer> experts;
    if (engine) experts = std::make_unique<Layer>(*engine, layer, poison_leased);
    ThreadedHost host;
    expert_gemm(
        kReferenceKernel, Activation{}, weights,
        {ElementType::kFloat, Precision::kFloat, tokens, kShape.top_k, false, x.data(), ids.data(), nullptr, y.data()},
        experts.get(), host);
    all.insert(all.end(), y.begin(), y.end());
  }
  return all;
}

bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// What lies in the slot of an expert that bypassed the cache, once its call has ended.
const char* after_release(ResidencyEngine& engine) {
  std::vector<int32_t> ids;
  for (int32_t expert = 0; expert < kShape.experts; ++expert) ids.push_back(expert);
  const uint8_t* codes = nullptr;
  {
    const std::unique_ptr<ExpertSource> source = engine.open(0, ids.data(), kShape.experts);
    while (source->next().count > 0) {
    }
    codes = source->resident(0)[0].codes;
  }
  return *codes == 0xff ? "poison" : "data";
}

}  // namespace

int main(int, char** arguments) {
  write_model(arguments[1], kShape);
  const MappedModel model(arguments[1], kShape);
  const std::vector<float> expected = products(model, nullptr, false);
  ResidencyOptions options;
  options.mode = ResidencyMode::kPool;
  options.budget = CacheBudget::parse("25%");
  options.prefetch = PrefetchSignalKind::kCrossLayer;
  options.prefetch_precision = 0;
  options.poison = true;
  ResidencyEngine released(options);
  model.add_layers(released);
  std::printf("poison after release: %s\n", same_bytes(products(model, &released, false), expected) ? "same" : "other");
  ResidencyEngine leased(options);
  model.add_layers(leased);
  std::printf("poison under lease: %s\n", same_bytes(products(model, &leased, true), expected) ? "same" : "other");
  ResidencyEngine bypassed(options);
  model.add_layers(bypassed);
  std::printf("a slot that was given back: %s\n", after_release(bypassed));
  std::printf("%s\n", released.statistics().to_json().c_str());
  return EXIT_SUCCESS;
}
