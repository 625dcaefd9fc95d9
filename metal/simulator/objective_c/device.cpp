// A Metal device of fibers: compiles the host's MSL text with the simulator and runs its dispatches when a command
// buffer is committed. It holds buffers to Metal's rules and reports a kernel's misuse as the command buffer's error.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <sstream>

#include "launch.h"
#include "runtime.h"

namespace fake {

namespace {

struct Size {
  uint64_t width, height, depth;
};

constexpr uint64_t kPage = 16384;
constexpr uint64_t kBuffers = 31;
constexpr uint64_t kInlineBytes = 4096;
constexpr uint64_t kCompleted = 4, kError = 5;

Object* make_error(const std::string& text) {
  Object* error = autoreleased(create("NSError"));
  error->text = text;
  return error;
}

Object* failed(Object** error, const std::string& text) {
  if (error) *error = make_error(text);
  return nullptr;
}

// The command's output; its errors when it fails.
bool run_command(const std::string& command, std::string& output) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (!pipe) return false;
  char chunk[4096];
  for (size_t n; (n = fread(chunk, 1, sizeof chunk, pipe)) > 0;) output.append(chunk, n);
  return pclose(pipe) == 0;
}

Object* new_pipeline(Object*, SEL, Object* function, Object** error) {
  char path[] = "/tmp/onnx_moe_kernel_XXXXXX";
  const int descriptor = mkstemp(path);
  if (descriptor < 0) return failed(error, "no temporary file");
  close(descriptor);
  std::ofstream(path) << function->pipeline->text;
  const char* python = std::getenv("ONNX_MOE_SIMULATOR_PYTHON");
  std::string command = std::string(python ? python : "python3") + " -m metal.simulator.objective_c.pipeline " + path +
                        " " + function->text;
  for (const auto& [index, value] : function->constants) {
    command += " " + std::to_string(index) + "=" + std::to_string(value);
  }
  std::string output;
  const bool compiled = run_command(command, output);
  unlink(path);
  if (!compiled) return failed(error, output);
  std::istringstream lines(output);
  std::string runtime, kernel, symbol;
  std::getline(lines, runtime);
  std::getline(lines, kernel);
  std::getline(lines, symbol);
  void* fibers = dlopen(runtime.c_str(), RTLD_NOW | RTLD_GLOBAL);
  void* library = fibers ? dlopen(kernel.c_str(), RTLD_NOW) : nullptr;
  if (!library) return failed(error, dlerror());
  Object* pipeline = create("Pipeline");
  pipeline->text = function->text;
  pipeline->launch = dlsym(fibers, "mslrt_launch");
  pipeline->function = dlsym(library, symbol.c_str());
  return pipeline;
}

Object* new_function(Object* library, SEL, Object* name, Object* constants, Object** error) {
  if (library->text.find("kernel void " + name->text + "(") == std::string::npos) {
    return failed(error, "the library has no function '" + name->text + "'");
  }
  Object* function = create("Function");
  function->text = name->text;
  function->pipeline = Reference(library);
  function->constants = constants->constants;
  return function;
}

Object* new_buffer(Object*, SEL, uint64_t length, uint64_t) {
  if (length == 0) return nullptr;
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

void set_constant(Object* constants, SEL, const void* value, uint64_t type, uint64_t index) {
  constexpr uint64_t kBool = 53, kUInt = 33;
  if (type != kBool && type != kUInt) misuse("function constants of this type are not simulated");
  uint32_t number = 0;
  std::memcpy(&number, value, type == kBool ? 1 : 4);
  constants->constants[index] = number;
}

Argument& argument(Object* encoder, uint64_t index) {
  if (index >= kBuffers) misuse("buffer index " + std::to_string(index) + " is past the argument table");
  return encoder->arguments[index];
}

void set_buffer(Object* encoder, SEL, Object* buffer, uint64_t offset, uint64_t index) {
  if (buffer && offset >= buffer->memory.size) misuse("a buffer's offset is past its end");
  argument(encoder, index) = {Reference(buffer), offset, {}};
}

void set_bytes(Object* encoder, SEL, const char* bytes, uint64_t length, uint64_t index) {
  if (length > kInlineBytes) misuse("setBytes takes at most 4096 bytes");
  argument(encoder, index) = {Reference(), 0, std::vector<char>(bytes, bytes + length)};
}

void run_kernel(Object* encoder, const Size& groups, const Size& threads) {
  static std::mutex mutex;  // fibers handle signals for the whole process
  const std::lock_guard<std::mutex> lock(mutex);
  std::vector<void*> pointers(kBuffers);
  std::vector<uint64_t> sizes(kBuffers);
  for (size_t i = 0; i < kBuffers; ++i) {
    Argument& given = encoder->arguments[i];
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
  MslLaunch launch{};
  launch.fn = reinterpret_cast<KernelFn>(encoder->pipeline->function);
  launch.bufs = pointers.data();
  launch.buf_bytes = sizes.data();
  launch.nbufs = kBuffers;
  const Size* const dimensions[2] = {&groups, &threads};
  uint32_t* const targets[2] = {launch.grid, launch.tpg};
  for (int i = 0; i < 2; ++i) {
    targets[i][0] = static_cast<uint32_t>(dimensions[i]->width);
    targets[i][1] = static_cast<uint32_t>(dimensions[i]->height);
    targets[i][2] = static_cast<uint32_t>(dimensions[i]->depth);
  }
  const char* schedule = std::getenv("ONNX_MOE_SIMULATOR_SCHEDULE");
  launch.schedule = schedule ? static_cast<uint32_t>(std::atoi(schedule)) : 0;
  launch.seed = launch.workers = launch.strict = launch.guard = 1;
  launch.tg_limit = 32768;
  reinterpret_cast<int (*)(MslLaunch*)>(encoder->pipeline->launch)(&launch);
  if (launch.err[0] && !encoder->commands->error.get()) {
    Object* error = create("NSError");
    error->text = encoder->pipeline->text + ": " + launch.err;
    encoder->commands->error = Reference(error);
  }
}

// By value: Metal passes a size in memory.
void dispatch(Object* encoder, SEL, Size groups, Size threads) {
  if (!encoder->pipeline.get()) misuse("a dispatch without a pipeline");
  if (encoder->commands->error.get()) return;
  run_kernel(encoder, groups, threads);
}

Object* new_encoder(Object* commands, SEL, uint64_t) {
  Object* encoder = autoreleased(create("Encoder"));
  encoder->commands = Reference(commands);
  encoder->arguments.resize(kBuffers);
  return encoder;
}

template <typename Function>
void method(const char* class_name, const char* selector, Function* function) {
  define(class_name, selector, reinterpret_cast<Method>(function));
}

void define_classes() {
  method(
      "NSString", "stringWithCString:encoding:", +[](Object*, SEL, const char* text, uint64_t) {
        Object* string = autoreleased(create("NSString"));
        string->text = text;
        return string;
      });
  method("NSString", "UTF8String", +[](Object* string) { return string->text.c_str(); });
  method(
      "NSError", "localizedDescription", +[](Object* error) {
        Object* string = autoreleased(create("NSString"));
        string->text = error->text;
        return string;
      });
  method("MTLCompileOptions", "setLanguageVersion:", +[](Object*, SEL, uint64_t) {});
  method(
      "MTLCompileOptions", "setFastMathEnabled:", +[](Object*, SEL, bool enabled) {
        if (enabled) misuse("fast math would drop NaN and infinities");
      });
  method("MTLFunctionConstantValues", "setConstantValue:type:atIndex:", set_constant);
  method("Device", "newCommandQueue", +[](Object*) { return create("Queue"); });
  method(
      "Device", "newLibraryWithSource:options:error:", +[](Object*, SEL, Object* source, Object*, Object**) {
        Object* library = create("Library");
        library->text = source->text;
        return library;
      });
  method("Device", "newComputePipelineStateWithFunction:error:", new_pipeline);
  method("Device", "newBufferWithLength:options:", new_buffer);
  method("Device", "newBufferWithBytesNoCopy:length:options:deallocator:", wrap_memory);
  method("Library", "newFunctionWithName:constantValues:error:", new_function);
  method("Pipeline", "maxTotalThreadsPerThreadgroup", +[](Object*) -> uint64_t { return 1024; });
  method("Queue", "commandBuffer", +[](Object*) { return autoreleased(create("CommandBuffer")); });
  method("CommandBuffer", "computeCommandEncoderWithDispatchType:", new_encoder);
  method("CommandBuffer", "commit", +[](Object*) {});
  method("CommandBuffer", "waitUntilCompleted", +[](Object*) {});
  method("CommandBuffer", "status", +[](Object* commands) { return commands->error.get() ? kError : kCompleted; });
  method("CommandBuffer", "error", +[](Object* commands) { return commands->error.get(); });
  method(
      "Encoder", "setComputePipelineState:", +[](Object* encoder, SEL, Object* pipeline) {
        encoder->pipeline = Reference(pipeline);
      });
  method("Encoder", "setBuffer:offset:atIndex:", set_buffer);
  method("Encoder", "setBytes:length:atIndex:", set_bytes);
  method("Encoder", "dispatchThreadgroups:threadsPerThreadgroup:", dispatch);
  method("Encoder", "endEncoding", +[](Object*) {});
  method("Buffer", "contents", +[](Object* buffer) { return buffer->memory.bytes; });
}

}  // namespace

}  // namespace fake

extern "C" {
fake::Object* MTLCreateSystemDefaultDevice() {
  if (std::getenv("ONNX_MOE_SIMULATOR_NO_DEVICE")) return nullptr;
  fake::define_classes();
  return fake::create("Device");
}
fake::Object* MTLCopyAllDevices() { return nullptr; }
fake::Object* MTLCopyAllDevicesWithObserver(fake::Object**, void*) { return nullptr; }
void MTLRemoveDeviceObserver(fake::Object*) {}
}
