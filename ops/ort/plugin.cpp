// RegisterCustomOps: the operators, once for every element type, in a domain that lives as long as the process.
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "kernels/registry.h"
#include "operators/block_operator.h"
#include "operators/definition.h"
#include "operators/expert_gemm_operator.h"
#include "operators/router_operator.h"
#include "ort/api.h"

namespace onnx_moe {

namespace {

// One operator for one element type, as ONNX Runtime sees it.
struct RegisteredOperator : OrtCustomOp {
  const OrtApi* api;
  const OperatorDefinition* definition;
  int type;

  static const RegisteredOperator& from(const OrtCustomOp* self) {
    return *static_cast<const RegisteredOperator*>(self);
  }

  // Type of an input or output: 0 lets any through, which the kernel then checks by the definition.
  int type_of(const TensorDefinition& tensor) const {
    if (tensor.type == "T") return type;
    return tensor.types.size() == 1 ? tensor.types[0] : static_cast<int>(ort::kAnyType);
  }
};

template <typename Operator>
OrtStatus* create_kernel(const OrtCustomOp* self, const OrtApi* api, const OrtKernelInfo* raw_info, void** kernel) {
  const RegisteredOperator& registered = RegisteredOperator::from(self);
  const ort::KernelInfo info(api, raw_info);
  std::string label;
  return ort::guarded(api, "", [&] {
    label = node_label(info, *registered.definition);
    try {
      *kernel = std::make_unique<Operator>(api, info, *registered.definition, registered.type).release();
    } catch (const Error& error) {
      fail(label, ": ", error.what());
    }
  });
}

template <typename Operator>
OrtStatus* infer_shapes(const OrtCustomOp* self, OrtShapeInferContext* context) {
  const OrtApi* api = RegisteredOperator::from(self).api;
  return ort::guarded(api, Operator::kName, [&] { Operator::infer_shapes(ort::ShapeInference(api, context)); });
}

int one(const OrtCustomOp*) { return 1; }

void set_signature_callbacks(RegisteredOperator& op) {
  op.GetName = [](const OrtCustomOp* self) { return RegisteredOperator::from(self).definition->name.c_str(); };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](const OrtCustomOp* self) {
    return RegisteredOperator::from(self).definition->inputs.size();
  };
  op.GetOutputTypeCount = [](const OrtCustomOp* self) {
    return RegisteredOperator::from(self).definition->outputs.size();
  };
  op.GetInputType = [](const OrtCustomOp* self, size_t i) {
    const auto& registered = RegisteredOperator::from(self);
    return registered.type_of(registered.definition->inputs[i]);
  };
  op.GetOutputType = [](const OrtCustomOp* self, size_t i) {
    const auto& registered = RegisteredOperator::from(self);
    return registered.type_of(registered.definition->outputs[i]);
  };
  op.GetInputCharacteristic = [](const OrtCustomOp* self, size_t i) -> int {
    return RegisteredOperator::from(self).definition->inputs[i].optional ? ort::kOptional : ort::kRequired;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp* self, size_t i) -> int {
    return RegisteredOperator::from(self).definition->outputs[i].optional ? ort::kOptional : ort::kRequired;
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = one;
  op.GetVariadicInputHomogeneity = one;
  op.GetVariadicOutputMinArity = one;
  op.GetVariadicOutputHomogeneity = one;
  op.GetStartVersion = one;
}

template <typename Operator>
RegisteredOperator make_operator(const OrtApi* api, int type) {
  RegisteredOperator op{};
  op.version = ort::kApiVersion;
  op.api = api;
  op.definition = &operator_definition(Operator::kName);
  op.type = type;
  set_signature_callbacks(op);
  op.CreateKernelV2 = create_kernel<Operator>;
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    return static_cast<OperatorKernel*>(kernel)->run(context);
  };
  op.KernelDestroy = [](void* kernel) {
    std::unique_ptr<OperatorKernel>(static_cast<OperatorKernel*>(kernel)).reset();
  };
  op.InferOutputShapeFn = infer_shapes<Operator>;
  return op;
}

// The domain as one ONNX Runtime in this process knows it. ONNX Runtime keeps pointers to the operators for as long
// as any session lives, so nothing of it is ever freed.
class Domain {
 public:
  explicit Domain(const OrtApi* api) : api_(api) {
    ort::check(api, ort::CreateCustomOpDomain(api, operator_domain(), &domain_));
    for (const int type : {ort::kFloat, ort::kFloat16, ort::kBFloat16}) {
      add(make_operator<RouterOperator>(api, type));
      add(make_operator<ExpertGemmOperator>(api, type));
      add(make_operator<BlockOperator>(api, type));
    }
  }

  void add_to(OrtSessionOptions* options) const { ort::check(api_, ort::AddCustomOpDomain(api_, options, domain_)); }

 private:
  void add(const RegisteredOperator& op) {
    operators_.push_back(op);
    ort::check(api_, ort::CustomOpDomain_Add(api_, domain_, &operators_.back()));
  }

  const OrtApi* api_;
  OrtCustomOpDomain* domain_ = nullptr;
  std::deque<RegisteredOperator> operators_;  // addresses must stay
};

const Domain& domain_for(const OrtApi* api) {
  static std::mutex mutex;
  static auto& domains = *std::make_unique<std::map<const OrtApi*, std::unique_ptr<Domain>>>().release();
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Domain>& domain = domains[api];
  if (!domain) domain = std::make_unique<Domain>(api);
  return *domain;
}

OrtStatus* too_old(const OrtApiBase* base) {
  // Version 1 of the table is in every runtime, and holds CreateStatus.
  const OrtApi* oldest = base->GetApi(1);
  const std::string message = std::string("onnx-moe needs ONNX Runtime ") + ort::kOldestRuntime +
                              " or newer, this is " + base->GetVersionString() + ": pip install -U onnxruntime";
  return ort::CreateStatus(oldest, ort::kFail, message.c_str());
}

}  // namespace

}  // namespace onnx_moe

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  using namespace onnx_moe;
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (!api) return too_old(base);
  return ort::guarded(api, "onnx-moe", [&] {
    current_kernel();  // a bad ONNX_MOE_KERNEL is an error here, not at the first run
    domain_for(api).add_to(options);
  });
}
