// What the host launches for an operator, in order: which kernel, with which constants and arguments, over which grid.
// A plan knows nothing of Metal. The host runtime executes it on a device, the simulator on fibers: there is no second
// description of the launches.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/moe_block.h"

namespace onnx_moe::metal {

// The tensors of an operator's call. A projection of its own has those without a prefix.
enum class Tensor : int32_t {
  kX,  // the hidden states of a router and of a block
  kGateWeight,
  kGateBias,
  kCorrectionBias,
  kExpertIds,
  kExpertWeights,
  kRouterLogits,
  kWeights,
  kScales,
  kGlobalScale,
  kBias,
  kDownWeights,
  kDownScales,
  kDownGlobalScale,
  kDownBias,
  kY,
  kNone,  // of a tensor that is left out: a buffer that is never read
};

// Memory of the plan's own, by its index in Plan::scratch.
struct Scratch {
  size_t index;
};

// One of the structures of kernels/arguments.h.
struct Bytes {
  std::array<unsigned char, 48> data;
  size_t size;
};

// An argument of a kernel: its place in the list is its buffer index.
using Argument = std::variant<Bytes, Tensor, Scratch>;

struct Launch {
  const char* file;
  const char* kernel;
  ElementType type;                 // of activations: what ELEMENT is
  std::vector<uint32_t> constants;  // function constants by their numbers
  std::vector<Argument> arguments;
  std::array<int64_t, 2> threadgroups;
  int64_t threads;  // of a threadgroup
};

struct ScratchMemory {
  int64_t bytes;
  bool zeroed;  // by the host, before the first launch; anything otherwise
};

struct Plan {
  std::vector<ScratchMemory> scratch;
  std::vector<Launch> launches;
};

// How a projection is computed; see regimes.h.
enum class Regime : int32_t { kDecode, kFew, kGrouped };

// The router's limits: why it cannot run these sizes, or empty.
std::string unsupported(const RouterAttributes& router, int64_t num_experts);

// Plans read sizes, types and which tensors are there; pointers only for being null. Nothing may be empty.
Plan plan_router(const RouterAttributes& attributes, const RouterInput& input);
Plan plan_projection(const Activation& activation, const ExpertWeights& weights, const ExpertGemmInput& input,
                     std::optional<Regime> forced = std::nullopt);
Plan plan_block(const MoeBlock& block, const RouterInput& input, std::optional<Regime> forced = std::nullopt);
// The grouping alone, into scratch: offsets, grouped assignments, tiles, tile count.
Plan plan_grouping(int64_t assignments, int64_t num_experts, int64_t tile_rows);

}  // namespace onnx_moe::metal
