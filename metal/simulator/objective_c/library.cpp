// Libraries, functions and pipelines of the fake device: the host's MSL text is compiled once by the simulator, with
// its function constants as variables. What it takes for a compiled library is such text too.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "dispatch/dispatch.h"
#include "runtime.h"

namespace fake {

namespace {

constexpr size_t kConstants = 32;

// The command's output; its errors when it fails.
bool run_command(const std::string& command, std::string& output) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (!pipe) return false;
  char chunk[4096];
  for (size_t n; (n = fread(chunk, 1, sizeof chunk, pipe)) > 0;) output.append(chunk, n);
  return pclose(pipe) == 0;
}

Object* compile(const std::string& source, Object** error) {
  char path[] = "/tmp/onnx_moe_kernel_XXXXXX";
  const int descriptor = mkstemp(path);
  if (descriptor < 0) return failed(error, "no temporary file");
  close(descriptor);
  std::ofstream(path) << source;
  const char* python = std::getenv("ONNX_MOE_SIMULATOR_PYTHON");
  std::string output;
  const bool compiled =
      run_command(std::string(python ? python : "python3") + " -m metal.simulator.objective_c.library " + path, output);
  unlink(path);
  if (!compiled) return failed(error, output);
  std::istringstream lines(output);
  std::string runtime, kernels;
  std::getline(lines, runtime);
  std::getline(lines, kernels);
  void* fibers = dlopen(runtime.c_str(), RTLD_NOW | RTLD_GLOBAL);
  void* code = fibers ? dlopen(kernels.c_str(), RTLD_NOW) : nullptr;
  if (!code) return failed(error, dlerror());
  Object* library = create("Library");
  library->function = code;
  library->launch = dlsym(fibers, "mslrt_launch");
  library->set_constants = dlsym(code, "msl_set_constants");
  return library;
}

Object* new_library(Object*, SEL, Object* source, Object*, Object** error) { return compile(source->text, error); }

Object* load_library(Object*, SEL, dispatch_data_t data, Object** error) {
  return compile(*reinterpret_cast<const std::string*>(data), error);
}

Object* new_function(Object* library, SEL, Object* name, Object* constants, Object** error) {
  void* const entry = dlsym(library->function, ("mslk_" + name->text).c_str());
  if (!entry) return failed(error, "the library has no function '" + name->text + "'");
  Object* function = create("Function");
  function->text = name->text;
  function->library = Reference(library);
  function->constants = constants->constants;
  function->function = entry;
  return function;
}

Object* new_pipeline(Object*, SEL, Object* function, Object**) {
  Object* pipeline = create("Pipeline");
  pipeline->text = function->text;
  pipeline->constants = function->constants;
  pipeline->constants.resize(kConstants);
  pipeline->function = function->function;
  pipeline->launch = function->library->launch;
  pipeline->set_constants = function->library->set_constants;
  return pipeline;
}

void set_constant(Object* constants, SEL, const uint32_t* value, uint64_t type, uint64_t index) {
  constexpr uint64_t kUInt = 33;
  if (type != kUInt || index >= kConstants) misuse("only 32 function constants of type uint are simulated");
  constants->constants.resize(kConstants);
  constants->constants[index] = *value;
}

}  // namespace

void define_library_classes() {
  method("MTLCompileOptions", "setLanguageVersion:", +[](Object*, SEL, uint64_t) {});
  method(
      "MTLCompileOptions", "setFastMathEnabled:", +[](Object*, SEL, bool enabled) {
        if (enabled) misuse("fast math would drop NaN and infinities");
      });
  method("MTLFunctionConstantValues", "setConstantValue:type:atIndex:", set_constant);
  method("Device", "newLibraryWithSource:options:error:", new_library);
  method("Device", "newLibraryWithData:error:", load_library);
  method("Device", "newComputePipelineStateWithFunction:error:", new_pipeline);
  method("Library", "newFunctionWithName:constantValues:error:", new_function);
  method("Pipeline", "maxTotalThreadsPerThreadgroup", +[](Object*) -> uint64_t { return kMostThreads; });
  method("Pipeline", "threadExecutionWidth", +[](Object*) { return static_cast<uint64_t>(setting("SIMD_WIDTH", 32)); });
}

}  // namespace fake

dispatch_data_t dispatch_data_create(const void* buffer, size_t size, dispatch_queue_t, void*) {
  return reinterpret_cast<dispatch_data_t>(new std::string(static_cast<const char*>(buffer), size));
}

void dispatch_release(dispatch_data_t data) {
  const std::unique_ptr<std::string> last(reinterpret_cast<std::string*>(data));
}
