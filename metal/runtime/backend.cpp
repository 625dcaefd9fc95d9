#include "runtime/backend.h"

#include <Metal/Metal.hpp>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "core/error.h"
#include "kernel_sources.inc"
#include "kernels/arguments.h"

namespace onnx_moe::metal {

namespace {

template <typename T>
using Owned = NS::SharedPtr<T>;

// Metal wraps memory without copying it in whole pages of this size.
constexpr uintptr_t kPage = 16384;
// Loads of codes are this wide.
constexpr uintptr_t kAlignment = 16;
// From this many assignments an expert on average, tiles of simdgroup matrices pay for grouping.
constexpr int64_t kGroupedFrom = 4;
constexpr int64_t kTileRows = 32;
constexpr int64_t kSimdgroups = 4;
constexpr int64_t kDecodeRows = 4;  // weight rows of a simdgroup, gate and up rows of its columns
constexpr int64_t kSimdWidth = 32;

NS::String* text(const std::string& value) { return NS::String::string(value.c_str(), NS::UTF8StringEncoding); }

std::string message(const NS::Error* error) {
  return error ? error->localizedDescription()->utf8String() : "Metal gave no reason";
}

const char* element_name(ElementType type) {
  return type == ElementType::kFloat ? "float" : type == ElementType::kFloat16 ? "half" : "bfloat";
}

uint32_t kind_of(bool present, ElementType type) { return !present ? 0 : type == ElementType::kFloat ? 1 : 2; }

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Bytes of an argument, or a buffer from an offset on.
struct Argument {
  MTL::Buffer* buffer = nullptr;
  uintptr_t offset = 0;
  const void* bytes = nullptr;
  size_t size = 0;
};

struct Constant {
  uint32_t value;
  bool is_bool;
};

struct Dispatch {
  const char* file;
  const char* kernel;
  ElementType type;
  std::vector<Constant> constants;
  std::vector<Argument> arguments;
  MTL::Size threadgroups;
  int64_t threads;
};

}  // namespace

class Backend::Implementation {
 public:
  explicit Implementation(Owned<MTL::Device> device)
      : device_(std::move(device)), queue_(NS::TransferPtr(device_->newCommandQueue())) {
    require(queue_.get() != nullptr, "Metal: the device gives no command queue");
  }

  Owned<MTL::Buffer> allocate(int64_t bytes) {
    auto buffer = NS::TransferPtr(device_->newBuffer(static_cast<NS::UInteger>(bytes), MTL::ResourceStorageModeShared));
    require(buffer.get() != nullptr, "Metal: no memory for a buffer of ", bytes, " bytes");
    return buffer;
  }

  // The pages that hold [data, data + bytes), not copied; a copy where that cannot be. The memory must stay until the
  // commands that use it have completed.
  Argument wrap(const void* data, int64_t bytes, std::vector<Owned<MTL::Buffer>>& keep) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    const uintptr_t first = address / kPage * kPage;
    const auto length = static_cast<uintptr_t>(divide_up(static_cast<int64_t>(address - first) + bytes, kPage)) * kPage;
    Owned<MTL::Buffer> buffer;
    if (address % kAlignment == 0) {
      buffer = NS::TransferPtr(
          device_->newBuffer(reinterpret_cast<const void*>(first), length, MTL::ResourceStorageModeShared, nullptr));
    }
    const bool copied = !buffer;
    if (copied) {
      buffer = allocate(bytes);
      std::memcpy(buffer->contents(), data, static_cast<size_t>(bytes));
    }
    keep.push_back(buffer);
    return {buffer.get(), copied ? 0 : address - first, nullptr, 0};
  }

  // Encodes all dispatches into one command buffer, one after the other, and waits for it.
  void run(const std::vector<Dispatch>& dispatches) {
    MTL::CommandBuffer* commands = queue_->commandBuffer();
    require(commands != nullptr, "Metal: the queue gives no command buffer");
    MTL::ComputeCommandEncoder* encoder = commands->computeCommandEncoder(MTL::DispatchTypeSerial);
    require(encoder != nullptr, "Metal: the command buffer gives no encoder");
    for (const Dispatch& dispatch : dispatches) encode(*encoder, dispatch);
    encoder->endEncoding();
    commands->commit();
    commands->waitUntilCompleted();
    require(commands->status() == MTL::CommandBufferStatusCompleted, "Metal: ", message(commands->error()));
  }

 private:
  void encode(MTL::ComputeCommandEncoder& encoder, const Dispatch& dispatch) {
    encoder.setComputePipelineState(pipeline(dispatch));
    for (size_t i = 0; i < dispatch.arguments.size(); ++i) {
      const Argument& argument = dispatch.arguments[i];
      if (argument.bytes) {
        encoder.setBytes(argument.bytes, argument.size, i);
      } else {
        encoder.setBuffer(argument.buffer, argument.offset, i);
      }
    }
    encoder.dispatchThreadgroups(dispatch.threadgroups, MTL::Size(static_cast<NS::UInteger>(dispatch.threads), 1, 1));
  }

  MTL::ComputePipelineState* pipeline(const Dispatch& dispatch) {
    std::string key = std::string(dispatch.kernel) + " " + element_name(dispatch.type);
    for (const Constant& constant : dispatch.constants) key += " " + std::to_string(constant.value);
    const std::lock_guard<std::mutex> lock(mutex_);
    Owned<MTL::ComputePipelineState>& state = pipelines_[key];
    if (!state) state = compile(dispatch);
    return state.get();
  }

  Owned<MTL::ComputePipelineState> compile(const Dispatch& dispatch) {
    auto values = NS::TransferPtr(MTL::FunctionConstantValues::alloc()->init());
    for (size_t i = 0; i < dispatch.constants.size(); ++i) {
      const Constant& constant = dispatch.constants[i];
      const bool flag = constant.value != 0;
      if (constant.is_bool) {
        values->setConstantValue(&flag, MTL::DataTypeBool, i);
      } else {
        values->setConstantValue(&constant.value, MTL::DataTypeUInt, i);
      }
    }
    NS::Error* error = nullptr;
    auto function = NS::TransferPtr(
        library(dispatch.file, dispatch.type)->newFunction(text(dispatch.kernel), values.get(), &error));
    require(function.get() != nullptr, "Metal kernel ", dispatch.kernel, ": ", message(error));
    auto state = NS::TransferPtr(device_->newComputePipelineState(function.get(), &error));
    require(state.get() != nullptr, "Metal kernel ", dispatch.kernel, ": ", message(error));
    require(state->maxTotalThreadsPerThreadgroup() >= static_cast<NS::UInteger>(dispatch.threads), "Metal kernel ",
            dispatch.kernel, " runs at most ", state->maxTotalThreadsPerThreadgroup(), " threads, but needs ",
            dispatch.threads);
    return state;
  }

  MTL::Library* library(const std::string& file, ElementType type) {
    Owned<MTL::Library>& library = libraries_[file + " " + element_name(type)];
    if (library) return library.get();
    auto options = NS::TransferPtr(MTL::CompileOptions::alloc()->init());
    options->setLanguageVersion(MTL::LanguageVersion3_1);
    // NaN, infinities and the order of sums are part of what the operators promise.
    options->setFastMathEnabled(false);
    const std::string source = std::string("#define ELEMENT ") + element_name(type) + "\n" + kernel_source(file);
    NS::Error* error = nullptr;
    library = NS::TransferPtr(device_->newLibrary(text(source), options.get(), &error));
    require(library.get() != nullptr, "Metal does not compile ", file, ".metal: ", message(error));
    return library.get();
  }

  Owned<MTL::Device> device_;
  Owned<MTL::CommandQueue> queue_;
  std::mutex mutex_;  // of both maps
  std::map<std::string, Owned<MTL::Library>> libraries_;
  std::map<std::string, Owned<MTL::ComputePipelineState>> pipelines_;
};

Backend::Backend(std::unique_ptr<Implementation> implementation) : implementation_(std::move(implementation)) {}
Backend::~Backend() = default;

Backend* Backend::get() {
  // Never freed: command queues must not be torn down while the process ends.
  static Backend* const backend = []() -> Backend* {
    const auto pool = NS::TransferPtr(NS::AutoreleasePool::alloc()->init());
    auto device = NS::TransferPtr(MTL::CreateSystemDefaultDevice());
    if (!device) return nullptr;
    return std::unique_ptr<Backend>(new Backend(std::make_unique<Implementation>(std::move(device)))).release();
  }();
  return backend;
}

namespace {

// One projection: its buffers for the length of the call, and its dispatches in order.
class Projection {
 public:
  Projection(const Activation& activation, const ExpertWeights& weights, const ExpertGemmInput& input)
      : input_(input),
        assignments_(input.tokens * input.slots),
        outputs_(activation.output_columns(weights.rows)),
        grouped_(assignments_ >= kGroupedFrom * weights.num_experts),
        gated_(activation.gated),
        arguments_{static_cast<uint32_t>(assignments_),
                   static_cast<uint32_t>(input.slots),
                   static_cast<uint32_t>(weights.num_experts),
                   static_cast<uint32_t>(weights.rows),
                   static_cast<uint32_t>(weights.columns),
                   static_cast<uint32_t>(outputs_),
                   input.x_per_slot ? 1u : 0u,
                   static_cast<uint32_t>(weights.global_scales),
                   activation.alpha,
                   activation.beta,
                   activation.limit},
        grouping_{arguments_.assignments, arguments_.num_experts},
        combine_{static_cast<uint32_t>(input.tokens), arguments_.slots, arguments_.output_columns},
        constants_{{static_cast<uint32_t>(weights.format.format), false},
                   {static_cast<uint32_t>(weights.format.block_size), false},
                   {static_cast<uint32_t>(activation.function), false},
                   {activation.gated, true},
                   {activation.interleaved, true},
                   {weights.global_scale != nullptr, true},
                   {kind_of(weights.bias != nullptr, weights.bias_type), false},
                   {input.expert_weights != nullptr, true}} {}

  template <typename Device>
  void run(Device& device, const ExpertWeights& weights) {
    const int64_t value_bytes = static_cast<int64_t>(element_size(input_.type));
    const int64_t x_rows = input_.x_per_slot ? assignments_ : input_.tokens;
    const bool combined = input_.expert_weights != nullptr;
    const int64_t y_bytes = (combined ? input_.tokens : assignments_) * outputs_ * value_bytes;
    const auto y = device.allocate(y_bytes);
    const Argument x = device.wrap(input_.x, x_rows * weights.columns * value_bytes, keep_);
    const Argument ids = device.wrap(input_.expert_ids, assignments_ * 4, keep_);
    const std::vector<Argument> tensors = wrap_weights(device, weights);
    Argument slots{y.get()};
    if (combined) slots = temporary(device, assignments_ * outputs_ * 4);
    grouped_ ? add_grouped(device, x, ids, tensors, slots) : add_decode(x, ids, tensors, slots);
    if (combined) {
      const Argument expert_weights = device.wrap(input_.expert_weights, assignments_ * 4, keep_);
      add({"combine",
           "combine",
           input_.type,
           {},
           {bytes(combine_), slots, expert_weights, {y.get()}},
           grid(divide_up(outputs_, 64), input_.tokens),
           64});
    }
    device.run(dispatches_);
    std::memcpy(input_.y, y->contents(), static_cast<size_t>(y_bytes));
  }

 private:
  template <typename T>
  static Argument bytes(const T& value) {
    return {nullptr, 0, &value, sizeof value};
  }

  static MTL::Size grid(int64_t x, int64_t y) {
    return MTL::Size(static_cast<NS::UInteger>(x), static_cast<NS::UInteger>(y), 1);
  }

  void add(Dispatch dispatch) { dispatches_.push_back(std::move(dispatch)); }

  template <typename Device>
  Argument temporary(Device& device, int64_t size) {
    keep_.push_back(device.allocate(size));
    return {keep_.back().get()};
  }

  template <typename Device>
  std::vector<Argument> wrap_weights(Device& device, const ExpertWeights& weights) {
    const int64_t rows = weights.num_experts * weights.rows;
    const int64_t scales = rows * weights.format.blocks(weights.columns) * weights.format.scale_bytes();
    const Argument codes = device.wrap(weights.codes, rows * (weights.columns / 2), keep_);
    const Argument none = codes;  // of a tensor that is left out; never read
    const int64_t bias_bytes = rows * static_cast<int64_t>(element_size(weights.bias_type));
    return {codes, device.wrap(weights.scales, scales, keep_),
            weights.global_scale
                ? device.wrap(weights.global_scale, weights.num_experts * weights.global_scales * 4, keep_)
                : none,
            weights.bias ? device.wrap(weights.bias, bias_bytes, keep_) : none};
  }

  void add_decode(Argument x, Argument ids, const std::vector<Argument>& tensors, Argument y) {
    std::vector<Argument> arguments{bytes(arguments_), x, ids};
    arguments.insert(arguments.end(), tensors.begin(), tensors.end());
    arguments.push_back(y);
    add({"decode", "expert_decode", input_.type, constants_, arguments,
         grid(divide_up(outputs_, kSimdgroups * kDecodeRows / (gated_ ? 2 : 1)), assignments_),
         kSimdgroups * kSimdWidth});
  }

  template <typename Device>
  void add_grouped(Device& device, Argument x, Argument ids, const std::vector<Argument>& tensors, Argument y) {
    const int64_t experts = arguments_.num_experts;
    // An expert fills whole tiles but for its last: no more tiles than this can occur.
    const int64_t most_tiles = std::min(assignments_, assignments_ / kTileRows + experts);
    const Argument counts = temporary(device, experts * 4);
    const Argument offsets = temporary(device, experts * 4);
    const Argument grouped = temporary(device, assignments_ * 4);
    const Argument tiles = temporary(device, most_tiles * 12);
    const Argument tile_count = temporary(device, 4);
    const Argument sizes = bytes(grouping_);
    const MTL::Size expert_groups = grid(divide_up(experts, 8), 1);
    add({"grouping", "count_assignments", ElementType::kFloat, {}, {sizes, ids, counts}, expert_groups, 256});
    add({"grouping",
         "plan_tiles",
         ElementType::kFloat,
         {},
         {sizes, counts, offsets, tiles, tile_count},
         grid(1, 1),
         32});
    add({"grouping",
         "scatter_assignments",
         ElementType::kFloat,
         {},
         {sizes, ids, offsets, grouped},
         expert_groups,
         256});
    std::vector<Argument> arguments{bytes(arguments_), x, grouped, tiles, tile_count};
    arguments.insert(arguments.end(), tensors.begin(), tensors.end());
    arguments.push_back(y);
    add({"grouped", "expert_grouped", input_.type, constants_, arguments,
         grid(divide_up(outputs_, gated_ ? kTileRows / 2 : kTileRows), most_tiles), 128});
  }

  const ExpertGemmInput& input_;
  const int64_t assignments_;
  const int64_t outputs_;
  const bool grouped_;
  const bool gated_;
  const ExpertGemmArguments arguments_;
  const GroupingArguments grouping_;
  const CombineArguments combine_;
  const std::vector<Constant> constants_;
  std::vector<Owned<MTL::Buffer>> keep_;
  std::vector<Dispatch> dispatches_;
};

void check_ids(const ExpertWeights& weights, const ExpertGemmInput& input) {
  for (int64_t i = 0; i < input.tokens * input.slots; ++i) {
    const int32_t expert = input.expert_ids[i];
    require(expert >= 0 && expert < weights.num_experts, "expert_ids holds ", expert, " in row ", i / input.slots,
            ", slot ", i % input.slots, ", but experts are numbered 0 to ", weights.num_experts - 1);
  }
}

}  // namespace

void Backend::expert_gemm(const Activation& activation, const ExpertWeights& weights, const ExpertGemmInput& input) {
  if (input.tokens == 0) return;
  check_ids(weights, input);
  const auto pool = NS::TransferPtr(NS::AutoreleasePool::alloc()->init());
  Projection(activation, weights, input).run(*implementation_, weights);
}

}  // namespace onnx_moe::metal
