// Uses Metal wrongly, in the way that its argument names: the fake device must notice.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "runtime/objects.h"

namespace {

using onnx_moe::metal::Owned;

struct Commands {
  MTL::CommandBuffer* buffer;
  MTL::ComputeCommandEncoder* encoder;
};

Commands begin(MTL::CommandQueue& queue) {
  MTL::CommandBuffer* buffer = queue.commandBuffer();
  return {buffer, buffer->computeCommandEncoder(MTL::DispatchTypeSerial)};
}

Owned<MTL::ResidencySet> make_residency_set(MTL::Device& device) {
  const auto descriptor = NS::TransferPtr(MTL::ResidencySetDescriptor::alloc()->init());
  return NS::TransferPtr(device.newResidencySet(descriptor.get(), nullptr));
}

void misuse_residency(const std::string& what, MTL::Device& device, MTL::CommandQueue& queue, MTL::Buffer* memory) {
  const auto set = make_residency_set(device);
  if (what == "many residency sets") {
    for (int i = 0; i < 33; ++i) queue.addResidencySet(make_residency_set(device).get());
  }
  if (what == "not in the set") set->removeAllocation(memory);
  set->addAllocation(memory);
  if (what == "changes not committed") set->requestResidency();
  set->commit();
  set->requestResidency();
}

Owned<MTL::ComputePipelineState> make_pipeline(MTL::Device& device) {
  const auto source = onnx_moe::metal::text("kernel void nothing(device uint* y [[buffer(1)]]) {}");
  NS::Error* error = nullptr;
  const auto library = NS::TransferPtr(device.newLibrary(source, static_cast<MTL::CompileOptions*>(nullptr), &error));
  const auto constants = NS::TransferPtr(MTL::FunctionConstantValues::alloc()->init());
  const auto function =
      NS::TransferPtr(library->newFunction(onnx_moe::metal::text("nothing"), constants.get(), &error));
  return NS::TransferPtr(device.newComputePipelineState(function.get(), &error));
}

void misuse(const std::string& what, MTL::Device& device) {
  const auto queue = NS::TransferPtr(device.newCommandQueue());
  const auto memory = NS::TransferPtr(device.newBuffer(64, MTL::ResourceStorageModeShared));
  if (what == "unknown selector") device.newFence();
  if (what == "freed object") {
    MTL::Buffer* freed = device.newBuffer(64, MTL::ResourceStorageModeShared);
    freed->release();
    freed->length();
  }
  if (what == "released twice") {
    memory->release();
    memory->release();
  }
  misuse_residency(what, device, *queue.get(), memory.get());
  const Commands commands = begin(*queue.get());
  if (what == "argument table") commands.encoder->setBuffer(memory.get(), 0, 31);
  if (what == "unaligned offset") commands.encoder->setBuffer(memory.get(), 8, 0);
  if (what == "wide threadgroup" || what == "unbound argument") {
    const auto pipeline = make_pipeline(device);
    commands.encoder->setComputePipelineState(pipeline.get());
    commands.encoder->setBuffer(memory.get(), 0, 1);
    commands.encoder->dispatchThreadgroups(MTL::Size(1, 1, 1), MTL::Size(what[0] == 'w' ? 1056 : 32, 1, 1));
  }
  if (what == "offset past the end") commands.encoder->setBuffer(memory.get(), 64, 0);
  if (what == "long bytes") commands.encoder->setBytes(std::vector<char>(4097).data(), 4097, 0);
  if (what == "no pipeline") commands.encoder->dispatchThreadgroups(MTL::Size(1, 1, 1), MTL::Size(32, 1, 1));
  if (what == "open encoder") commands.buffer->commit();
  commands.encoder->endEncoding();
  if (what == "not committed") commands.buffer->waitUntilCompleted();
  commands.buffer->commit();
  if (what == "committed twice") commands.buffer->commit();
  commands.buffer->waitUntilCompleted();
}

int wrap_unaligned(MTL::Device& device) {
  alignas(16384) static char pages[2 * 16384];
  const auto wrap = [&](char* data, size_t bytes) {
    return NS::TransferPtr(
        device.newBuffer(static_cast<const void*>(data), bytes, MTL::ResourceStorageModeShared, nullptr));
  };
  const bool right = wrap(pages, sizeof pages) && !wrap(pages + 64, 16384) && !wrap(pages, 100);
  std::puts(right ? "only whole pages are wrapped" : "wrong");
  return right ? 0 : 1;
}

}  // namespace

int main(int, char** arguments) {
  const std::string what = arguments[1];
  const auto device = NS::TransferPtr(MTL::CreateSystemDefaultDevice());
  if (what == "no pool") NS::String::string("text", NS::UTF8StringEncoding);
  const onnx_moe::metal::AutoreleaseScope scope;
  if (what == "unaligned") return wrap_unaligned(*device.get());
  misuse(what, *device.get());
  std::puts("nothing was noticed");
  return 0;
}
