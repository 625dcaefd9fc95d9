// The Metal backend: the operators' plans, run on the default device.
#include <map>
#include <mutex>

#include "core/accelerator.h"
#include "core/dispatch.h"
#include "plan/regimes.h"
#include "runtime/execution.h"
#include "runtime/self_test.h"

namespace onnx_moe::metal {

namespace {

struct ProjectionTensors {
  Tensor codes;
  Tensor scales;
  Tensor global_scale;
  Tensor bias;
};

constexpr ProjectionTensors kFirst{Tensor::kWeights, Tensor::kScales, Tensor::kGlobalScale, Tensor::kBias};
constexpr ProjectionTensors kDown{Tensor::kDownWeights, Tensor::kDownScales, Tensor::kDownGlobalScale,
                                  Tensor::kDownBias};

int64_t size_of(ElementType type) { return static_cast<int64_t>(element_size(type)); }

void bind(Execution& execution, const ProjectionTensors& tensors, const ExpertWeights& weights) {
  const int64_t rows = weights.num_experts * weights.rows;
  execution.input(tensors.codes, weights.codes, rows * (weights.columns / 2));
  execution.input(tensors.scales, weights.scales,
                  rows * weights.format.blocks(weights.columns) * weights.format.scale_bytes());
  execution.input(tensors.global_scale, weights.global_scale, weights.num_experts * weights.global_scales * 4);
  execution.input(tensors.bias, weights.bias, rows * size_of(weights.bias_type));
}

void bind(Execution& execution, const RouterInput& input) {
  const int64_t columns = input.gate_weight ? input.hidden_size : input.num_experts;
  execution.input(Tensor::kX, input.hidden_states, input.tokens * columns * size_of(input.type));
  execution.input(Tensor::kGateWeight, input.gate_weight,
                  input.num_experts * input.hidden_size * size_of(input.gate_type));
  execution.input(Tensor::kGateBias, input.gate_bias, input.num_experts * size_of(input.bias_type));
  execution.input(Tensor::kCorrectionBias, input.correction_bias, input.num_experts * 4);
}

class Backend final : public Accelerator {
 public:
  explicit Backend(Owned<MTL::Device> device) : device_(std::move(device)), pipelines_(device_), pool_(device_) {}

  std::string description() const override { return device_.description(); }

  std::unique_ptr<Constants> adopt(const std::vector<ConstantMemory>& constants) override {
    return std::make_unique<Weights>(device_, constants);
  }

  std::string unsupported(const RouterAttributes& router, int64_t num_experts) const override {
    return metal::unsupported(router, num_experts);
  }

  const std::string& distrust(ElementType type) override {
    const std::lock_guard<std::mutex> lock(self_test_mutex_);
    const auto tested = distrust_.find(type);
    if (tested != distrust_.end()) return tested->second;
    const std::string difference = self_test(*this, type);
    return distrust_[type] = difference.empty() ? "" : description() + " fails its self-test: " + difference;
  }

  int64_t worth_from() const override { return kWorthFrom; }

  void route(const RouterAttributes& attributes, const RouterInput& input, const Constants& constants) override {
    if (input.tokens == 0) return;
    check(attributes, input.num_experts);
    const AutoreleaseScope scope;
    Execution execution = start(constants);
    bind(execution, input);
    const int64_t assignments = input.tokens * attributes.slots();
    execution.output(Tensor::kExpertIds, input.expert_ids, assignments * 4);
    execution.output(Tensor::kExpertWeights, input.expert_weights, assignments * 4);
    execution.output(Tensor::kRouterLogits, input.router_logits, input.tokens * input.num_experts * 4);
    execution.run(plan_router(attributes, input));
  }

  void expert_gemm(const Activation& activation, const ExpertWeights& weights, const ExpertGemmInput& input,
                   const Constants& constants) override {
    const int64_t assignments = input.tokens * input.slots;
    if (assignments == 0) return;
    for (int64_t i = 0; i < assignments; ++i) check_expert_id(input.expert_ids, i, input.slots, weights.num_experts);
    const AutoreleaseScope scope;
    Execution execution = start(constants);
    const int64_t x_rows = input.x_per_slot ? assignments : input.tokens;
    execution.input(Tensor::kX, input.x, x_rows * weights.columns * size_of(input.type));
    execution.input(Tensor::kExpertIds, input.expert_ids, assignments * 4);
    execution.input(Tensor::kExpertWeights, input.expert_weights, assignments * 4);
    bind(execution, kFirst, weights);
    const int64_t y_rows = input.expert_weights ? input.tokens : assignments;
    execution.output(Tensor::kY, input.y, y_rows * activation.output_columns(weights.rows) * size_of(input.type));
    execution.run(plan_projection(activation, weights, input));
  }

  void moe_block(const MoeBlock& block, const RouterInput& routing, void* y, const Constants& constants) override {
    if (routing.tokens == 0) return;
    check(block.router, routing.num_experts);
    const AutoreleaseScope scope;
    Execution execution = start(constants);
    bind(execution, routing);
    bind(execution, kFirst, block.gate_up);
    bind(execution, kDown, block.down);
    execution.output(Tensor::kY, y, routing.tokens * block.down.rows * size_of(routing.type));
    execution.run(plan_block(block, routing));
  }

 private:
  // Callers ask unsupported() first; beyond its limits the router would write past threadgroup memory.
  void check(const RouterAttributes& router, int64_t num_experts) const {
    const std::string reason = unsupported(router, num_experts);
    require(reason.empty(), reason, ": set the session entry onnx_moe.device to cpu");
  }

  Execution start(const Constants& constants) {
    return {device_, pipelines_, pool_, static_cast<const Weights&>(constants)};
  }

  Device device_;
  Pipelines pipelines_;
  BufferPool pool_;
  std::mutex self_test_mutex_;
  std::map<ElementType, std::string> distrust_;
};

AcceleratorSearch search() {
  const AutoreleaseScope scope;
  auto device = NS::TransferPtr(MTL::CreateSystemDefaultDevice());
  if (!device) return {nullptr, "no Metal device answers", true};
  try {
    // Never freed: command queues must not be torn down while the process ends.
    return {std::make_unique<Backend>(std::move(device)).release(), "", true};
  } catch (const Error& error) {
    return {nullptr, error.what(), true};
  }
}

}  // namespace

}  // namespace onnx_moe::metal

namespace onnx_moe {

const AcceleratorSearch& find_accelerator() {
  static const AcceleratorSearch found = metal::search();
  return found;
}

}  // namespace onnx_moe
