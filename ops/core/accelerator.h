// A device that can compute the operators in the CPU kernels' place. The Metal backend implements it; a build without
// one says so.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/moe_block.h"

namespace onnx_moe {

// Memory that is not written while it is adopted: a session's constant tensors.
struct ConstantMemory {
  const void* data;
  int64_t bytes;
};

class Accelerator {
 public:
  // Constant memory made ready for the device; given up with this object.
  class Constants {
   public:
    virtual ~Constants() = default;
    // What somebody should know who expects it to be used where it lies and to stay in memory; empty where it is so.
    virtual std::string remark() const = 0;
  };

  virtual ~Accelerator() = default;

  // What answers: name and system, for people.
  virtual std::string description() const = 0;

  // The memory must stay until the result is gone. Safe from any thread, as all that follows.
  virtual std::unique_ptr<Constants> adopt(const std::vector<ConstantMemory>& constants) = 0;

  // Why the device cannot route so, or empty.
  virtual std::string unsupported(const RouterAttributes& router, int64_t num_experts) const = 0;

  // Why its results for activations of this type are not to be trusted, or empty: small blocks, computed by the device
  // and by the CPU kernel, agree. Looked at once a process and type, when first asked.
  virtual const std::string& distrust(ElementType type) = 0;

  // Multiply-adds of a call below which the CPU is done sooner.
  virtual int64_t worth_from() const = 0;

  // As the functions of core/ with the same arguments, at accuracy_level 0. Tensors that `constants` holds are used
  // where they are. Throw an Error with the device's own message.
  virtual void route(const RouterAttributes& attributes, const RouterInput& input, const Constants& constants) = 0;
  virtual void expert_gemm(const Activation& activation, const ExpertWeights& weights, const ExpertGemmInput& input,
                           const Constants& constants) = 0;
  virtual void moe_block(const MoeBlock& block, const RouterInput& routing, void* y, const Constants& constants) = 0;
};

// The default device's, or why there is none.
struct AcceleratorSearch {
  Accelerator* accelerator;
  std::string reason;
  bool has_backend;  // whether this build could have one
};

// Made once a process, when first asked for, and never freed. Safe from any thread.
const AcceleratorSearch& find_accelerator();

}  // namespace onnx_moe
