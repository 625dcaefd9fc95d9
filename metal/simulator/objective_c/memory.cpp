// Buffers and residency sets of the fake device.
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "runtime.h"

namespace fake {

namespace {

constexpr uint64_t kPage = 16384;
constexpr size_t kMostResidencySets = 32;  // of a queue

std::atomic<uint64_t> allocated{0};
std::atomic<uint64_t> residency_sets{0};
std::atomic<int64_t> resident_bytes{0};

bool is_too_long(uint64_t length) {
  return length == 0 || length > static_cast<uint64_t>(setting("MOST_BUFFER_BYTES", INT64_MAX));
}

Object* new_buffer(Object*, SEL, uint64_t length, uint64_t) {
  if (is_too_long(length)) return nullptr;
  allocated += length;
  Object* buffer = create("Buffer");
  buffer->memory.owned.assign(length, static_cast<char>(0xFF));
  buffer->memory.bytes = buffer->memory.owned.data();
  buffer->memory.size = length;
  return buffer;
}

Object* wrap_memory(Object*, SEL, void* bytes, uint64_t length, uint64_t, void*) {
  if (reinterpret_cast<uintptr_t>(bytes) % kPage != 0 || length % kPage != 0) return nullptr;
  if (is_too_long(length) || setting("NO_WRAPS", 0)) return nullptr;
  Object* buffer = create("Buffer");
  buffer->memory.bytes = static_cast<char*>(bytes);
  buffer->memory.size = length;
  return buffer;
}

void add_allocation(Object* set, SEL, Object* buffer) {
  set->arguments.push_back({Reference(buffer), 0, {}});
  set->changed = true;
}

void remove_allocation(Object* set, SEL, Object* buffer) {
  auto& held = set->arguments;
  const auto entry =
      std::find_if(held.begin(), held.end(), [=](const Argument& each) { return each.buffer.get() == buffer; });
  if (entry == held.end()) misuse("a buffer is taken from a residency set that does not have it");
  resident_bytes -= static_cast<int64_t>(buffer->memory.size);
  held.erase(entry);
  set->changed = true;
}

void request_residency(Object* set) {
  if (set->changed) misuse("residency is requested of a set whose changes are not committed");
  resident_bytes = 0;
  for (const Argument& held : set->arguments) resident_bytes += static_cast<int64_t>(held.buffer->memory.size);
}

void add_residency_set(Object* queue, SEL, Object* set) {
  if (queue->arguments.size() == kMostResidencySets) misuse("a queue takes at most 32 residency sets");
  queue->arguments.push_back({Reference(set), 0, {}});
}

}  // namespace

void define_memory_classes() {
  method("Device", "newBufferWithLength:options:", new_buffer);
  method("Device", "newBufferWithBytesNoCopy:length:options:deallocator:", wrap_memory);
  method("Buffer", "contents", +[](Object* buffer) { return buffer->memory.bytes; });
  method("Buffer", "length", +[](Object* buffer) { return buffer->memory.size; });
  method(
      "Device", "newResidencySetWithDescriptor:error:", +[](Object*, SEL, Object*, Object** error) {
        if (setting("NO_RESIDENCY", 0)) return failed(error, "no memory for a set");
        ++residency_sets;
        return create("ResidencySet");
      });
  // What is in a set, and on a queue, is held until it is taken out.
  method("ResidencySet", "addAllocation:", add_allocation);
  method("ResidencySet", "removeAllocation:", remove_allocation);
  method("ResidencySet", "commit", +[](Object* set) { set->changed = false; });
  method("ResidencySet", "requestResidency", request_residency);
  method("Queue", "addResidencySet:", add_residency_set);
  method(
      "Device", "recommendedMaxWorkingSetSize",
      +[](Object*) { return static_cast<uint64_t>(setting("WORKING_SET", INT64_MAX)); });
  method(
      "Device", "maxBufferLength",
      +[](Object*) { return static_cast<uint64_t>(setting("MOST_BUFFER_BYTES", INT64_MAX)); });
}

}  // namespace fake

// Bytes of all buffers that did not wrap memory of the caller's.
extern "C" __attribute__((visibility("default"))) uint64_t onnx_moe_simulator_allocated() { return fake::allocated; }
// Residency sets that were ever made.
extern "C" __attribute__((visibility("default"))) uint64_t onnx_moe_simulator_residency_sets() {
  return fake::residency_sets;
}
// Bytes of buffers that were in a set when its residency was last requested, and still are.
extern "C" __attribute__((visibility("default"))) int64_t onnx_moe_simulator_resident() { return fake::resident_bytes; }
