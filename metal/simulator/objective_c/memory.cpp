// Buffers and residency sets of the fake device.
#include <atomic>

#include "runtime.h"

namespace fake {

namespace {

constexpr uint64_t kPage = 16384;

std::atomic<uint64_t> allocated{0};
std::atomic<uint64_t> residency_sets{0};

Object* new_buffer(Object*, SEL, uint64_t length, uint64_t) {
  if (length == 0) return nullptr;
  allocated += length;
  Object* buffer = create("Buffer");
  buffer->memory.owned.assign(length, static_cast<char>(0xFF));
  buffer->memory.bytes = buffer->memory.owned.data();
  buffer->memory.size = length;
  return buffer;
}

Object* wrap_memory(Object*, SEL, void* bytes, uint64_t length, uint64_t, void*) {
  if (reinterpret_cast<uintptr_t>(bytes) % kPage != 0 || length % kPage != 0 || length == 0) return nullptr;
  Object* buffer = create("Buffer");
  buffer->memory.bytes = static_cast<char*>(bytes);
  buffer->memory.size = length;
  return buffer;
}

}  // namespace

void define_memory_classes() {
  method("Device", "newBufferWithLength:options:", new_buffer);
  method("Device", "newBufferWithBytesNoCopy:length:options:deallocator:", wrap_memory);
  method("Buffer", "contents", +[](Object* buffer) { return buffer->memory.bytes; });
  method("Buffer", "length", +[](Object* buffer) { return buffer->memory.size; });
  method(
      "Device", "newResidencySetWithDescriptor:error:", +[](Object*, SEL, Object*, Object**) {
        ++residency_sets;
        return create("ResidencySet");
      });
  // What is in a set, and on a queue, is held until it is taken out.
  method(
      "ResidencySet", "addAllocation:", +[](Object* set, SEL, Object* buffer) {
        set->arguments.push_back({Reference(buffer), 0, {}});
      });
  method("ResidencySet", "commit", +[](Object* set) { set->status = 1; });
  method(
      "Queue", "addResidencySet:", +[](Object* queue, SEL, Object* set) {
        if (set->status != 1) misuse("a residency set is used before it is committed");
        queue->arguments.push_back({Reference(set), 0, {}});
      });
  method(
      "Queue", "removeResidencySet:", +[](Object* queue, SEL, Object* set) {
        for (auto entry = queue->arguments.begin(); entry != queue->arguments.end(); ++entry) {
          if (entry->buffer.get() != set) continue;
          queue->arguments.erase(entry);
          return;
        }
        misuse("a residency set is taken from a queue that does not have it");
      });
}

}  // namespace fake

// Bytes of all buffers that did not wrap memory of the caller's.
extern "C" __attribute__((visibility("default"))) uint64_t onnx_moe_simulator_allocated() { return fake::allocated; }
// Residency sets that were ever made.
extern "C" __attribute__((visibility("default"))) uint64_t onnx_moe_simulator_residency_sets() {
  return fake::residency_sets;
}
