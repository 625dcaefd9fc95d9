// Command buffers of the fake device. Work is recorded, and done when its completion is waited for, so that memory read
// before that holds what it held. Tests count what was submitted and make command buffers fail.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "launch.h"
#include "runtime.h"

namespace fake {

namespace {

constexpr uint32_t kThreadgroupBytes = 32768;
constexpr uint64_t kInlineBytes = 4096;
constexpr uint64_t kWidestLoad = 16;  // of the kernels
// MTLCommandBufferStatus
constexpr uint64_t kCommitted = 2, kCompleted = 4, kError = 5;

std::atomic<uint64_t> command_buffers{0};
std::atomic<uint64_t> dispatches{0};

// Command buffers until one fails; negative: none does.
std::atomic<int64_t> until_failure{-1};
std::atomic<bool> device_lost{false};

Argument& argument(Object* encoder, uint64_t index) {
  if (index >= kMostBuffers) misuse("buffer index " + std::to_string(index) + " is past the argument table");
  return encoder->arguments[index];
}

void set_buffer(Object* encoder, SEL, Object* buffer, uint64_t offset, uint64_t index) {
  if (buffer && offset >= buffer->memory.size) misuse("a buffer's offset is past its end");
  if (offset % kWidestLoad != 0) misuse("a buffer's offset is no multiple of 16, the widest load of kernels");
  argument(encoder, index) = {Reference(buffer), offset, {}};
}

void set_bytes(Object* encoder, SEL, const char* bytes, uint64_t length, uint64_t index) {
  if (length > kInlineBytes) misuse("setBytes takes at most 4096 bytes");
  argument(encoder, index) = {Reference(), 0, std::vector<char>(bytes, bytes + length)};
}

// Kernels number their arguments from 0 on: a gap is one that was forgotten.
void check_bound(const std::vector<Argument>& arguments) {
  const auto is_bound = [](const Argument& given) { return given.buffer.get() || !given.bytes.empty(); };
  const auto end = std::find_if(arguments.rbegin(), arguments.rend(), is_bound).base();
  const auto gap = std::find_if_not(arguments.begin(), end, is_bound);
  if (gap != end) misuse("buffer index " + std::to_string(gap - arguments.begin()) + " is not bound");
}

// By value: Metal passes a size in memory.
void record_dispatch(Object* encoder, SEL, Size threadgroups, Size threads) {
  if (!encoder->pipeline.get()) misuse("a dispatch without a pipeline");
  if (!encoder->encoding) misuse("a dispatch after endEncoding");
  if (threadgroups.width * threadgroups.height * threadgroups.depth == 0) misuse("a dispatch over an empty grid");
  if (threads.width * threads.height * threads.depth > kMostThreads) misuse("a threadgroup of more than 1024 threads");
  check_bound(encoder->arguments);
  encoder->commands->dispatches.push_back({encoder->pipeline, encoder->arguments, threadgroups, threads});
}

Object* new_encoder(Object* commands, SEL, uint64_t) {
  Object* encoder = autoreleased(create("Encoder"));
  encoder->commands = Reference(commands);
  encoder->arguments.resize(kMostBuffers);
  encoder->encoding = commands->encoding = true;
  return encoder;
}

void end_encoding(Object* encoder) { encoder->encoding = encoder->commands->encoding = false; }

void commit(Object* commands) {
  if (commands->encoding) misuse("a command buffer is committed before its encoder has ended");
  if (commands->status != 0) misuse("a command buffer is committed twice");
  commands->status = kCommitted;
  ++command_buffers;
}

void fail(Object* commands, const std::string& text) {
  commands->error = Reference::owning(create("NSError"));
  commands->error->text = text;
}

void copy_size(const Size& from, uint32_t* to) {
  to[0] = static_cast<uint32_t>(from.width);
  to[1] = static_cast<uint32_t>(from.height);
  to[2] = static_cast<uint32_t>(from.depth);
}

// Runs a dispatch on fibers; what went wrong, or nothing.
std::string run_kernel(Dispatch& dispatch) {
  std::vector<void*> pointers(kMostBuffers);
  std::vector<uint64_t> sizes(kMostBuffers);
  for (size_t i = 0; i < kMostBuffers; ++i) {
    Argument& given = dispatch.arguments[i];
    if (given.buffer.get()) {
      const Buffer& memory = given.buffer->memory;
      pointers[i] = memory.bytes + given.offset;
      // Wrapped pages hold other things too, and may be read-only: they cannot be replaced by a guarded copy.
      sizes[i] = memory.owned.empty() ? 0 : memory.size - given.offset;
    } else if (!given.bytes.empty()) {
      pointers[i] = given.bytes.data();
      sizes[i] = given.bytes.size();
    }
  }
  const Object* const pipeline = dispatch.pipeline.get();
  reinterpret_cast<void (*)(const uint32_t*)>(pipeline->set_constants)(pipeline->constants.data());
  MslLaunch launch{};
  launch.function = reinterpret_cast<MslKernel>(pipeline->function);
  launch.buffers = pointers.data();
  launch.buffer_bytes = sizes.data();
  launch.buffer_count = kMostBuffers;
  copy_size(dispatch.threadgroups, launch.threadgroups);
  copy_size(dispatch.threads, launch.threads);
  const char* schedule = std::getenv("ONNX_MOE_SIMULATOR_SCHEDULE");
  launch.schedule = schedule ? static_cast<uint32_t>(std::atoi(schedule)) : 0;
  launch.seed = launch.strict = launch.guard = 1;
  launch.threadgroup_limit = kThreadgroupBytes;
  reinterpret_cast<int (*)(MslLaunch*)>(pipeline->launch)(&launch);
  return launch.error[0] ? pipeline->text + ": " + launch.error : "";
}

bool fails_now() {
  if (device_lost) return true;
  int64_t left = until_failure;
  while (left >= 0 && !until_failure.compare_exchange_weak(left, left - 1)) {
  }
  return left == 0;
}

void wait_until_completed(Object* commands) {
  static std::mutex mutex;  // fibers handle signals for the whole process, and function constants are variables
  const std::lock_guard<std::mutex> lock(mutex);
  if (commands->status != kCommitted) misuse("a command buffer is waited for that was not committed");
  if (fails_now()) {
    fail(commands, device_lost ? "Device Removed (00000004:kIOGPUCommandBufferCallbackErrorDeviceRemoved)"
                               : "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)");
  }
  for (Dispatch& dispatch : commands->dispatches) {
    if (commands->error.get()) break;
    ++dispatches;
    const std::string wrong = run_kernel(dispatch);
    if (!wrong.empty()) fail(commands, wrong);
  }
  commands->dispatches.clear();
  commands->status = commands->error.get() ? kError : kCompleted;
}

}  // namespace

void define_command_classes() {
  method("Device", "newCommandQueue", +[](Object*) { return create("Queue"); });
  method("Queue", "commandBuffer", +[](Object*) { return autoreleased(create("CommandBuffer")); });
  method("CommandBuffer", "computeCommandEncoderWithDispatchType:", new_encoder);
  method("CommandBuffer", "commit", commit);
  method("CommandBuffer", "waitUntilCompleted", wait_until_completed);
  method("CommandBuffer", "status", +[](Object* commands) { return commands->status; });
  method("CommandBuffer", "error", +[](Object* commands) { return commands->error.get(); });
  method(
      "Encoder", "setComputePipelineState:", +[](Object* encoder, SEL, Object* pipeline) {
        encoder->pipeline = Reference(pipeline);
      });
  method("Encoder", "setBuffer:offset:atIndex:", set_buffer);
  method("Encoder", "setBytes:length:atIndex:", set_bytes);
  method("Encoder", "dispatchThreadgroups:threadsPerThreadgroup:", record_dispatch);
  method("Encoder", "endEncoding", end_encoding);
}

}  // namespace fake

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED uint64_t onnx_moe_simulator_command_buffers() { return fake::command_buffers; }
EXPORTED uint64_t onnx_moe_simulator_dispatches() { return fake::dispatches; }
// The command buffer after so many others ends with an error; negative: none.
EXPORTED void onnx_moe_simulator_fail_after(int64_t command_buffers) { fake::until_failure = command_buffers; }
// As if the GPU had gone: every command buffer fails.
EXPORTED void onnx_moe_simulator_lose_device(bool lost) { fake::device_lost = lost; }
