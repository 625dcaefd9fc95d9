#include "runtime/pipelines.h"

#include <dispatch/dispatch.h>

#include "kernels/arguments.h"

namespace onnx_moe::metal {

namespace {

// A file's kernels as Xcode compiled them, when it was there.
struct CompiledKernels {
  const void* data = nullptr;
  size_t size = 0;
};

#include "kernel_sources.inc"

const char* element_name(ElementType type) {
  return type == ElementType::kFloat ? "float" : type == ElementType::kFloat16 ? "half" : "bfloat";
}

Owned<MTL::Library> load(MTL::Device& device, const CompiledKernels& compiled, const Launch& launch) {
  // Without a destructor it keeps a copy.
  const dispatch_data_t data = dispatch_data_create(compiled.data, compiled.size, nullptr, nullptr);
  NS::Error* error = nullptr;
  auto library = NS::TransferPtr(device.newLibrary(data, &error));
  dispatch_release(data);
  require(library.get() != nullptr, "Metal does not load the compiled ", launch.file, ".metal: ", message(error));
  return library;
}

Owned<MTL::Library> compile_text(MTL::Device& device, const Launch& launch) {
  auto options = NS::TransferPtr(MTL::CompileOptions::alloc()->init());
  options->setLanguageVersion(MTL::LanguageVersion3_1);
  // NaN, infinities and the order of sums are part of what the operators promise.
  options->setFastMathEnabled(false);
  const std::string source =
      std::string("#define ELEMENT ") + element_name(launch.type) + "\n" + kernel_source(launch.file);
  NS::Error* error = nullptr;
  auto library = NS::TransferPtr(device.newLibrary(text(source), options.get(), &error));
  require(library.get() != nullptr, "Metal does not compile ", launch.file, ".metal: ", message(error));
  return library;
}

}  // namespace

MTL::ComputePipelineState* Pipelines::get(const Launch& launch) {
  std::string key = std::string(launch.kernel) + " " + element_name(launch.type);
  for (const uint32_t constant : launch.constants) key += " " + std::to_string(constant);
  const std::lock_guard<std::mutex> lock(mutex_);
  Owned<MTL::ComputePipelineState>& pipeline = pipelines_[key];
  if (!pipeline) pipeline = compile(launch);
  return pipeline.get();
}

Owned<MTL::ComputePipelineState> Pipelines::compile(const Launch& launch) {
  auto values = NS::TransferPtr(MTL::FunctionConstantValues::alloc()->init());
  for (size_t i = 0; i < launch.constants.size(); ++i) {
    values->setConstantValue(&launch.constants[i], MTL::DataTypeUInt, i);
  }
  NS::Error* error = nullptr;
  auto function = NS::TransferPtr(library(launch)->newFunction(text(launch.kernel), values.get(), &error));
  require(function.get() != nullptr, "Metal kernel ", launch.kernel, ": ", message(error));
  auto pipeline = NS::TransferPtr(device_.metal().newComputePipelineState(function.get(), &error));
  require(pipeline.get() != nullptr, "Metal kernel ", launch.kernel, ": ", message(error));
  require(pipeline->threadExecutionWidth() == SIMD_WIDTH, "Metal kernel ", launch.kernel, " runs in simdgroups of ",
          pipeline->threadExecutionWidth(), " threads, but is written for ", SIMD_WIDTH);
  require(pipeline->maxTotalThreadsPerThreadgroup() >= static_cast<NS::UInteger>(launch.threads), "Metal kernel ",
          launch.kernel, " runs at most ", pipeline->maxTotalThreadsPerThreadgroup(), " threads, but needs ",
          launch.threads);
  return pipeline;
}

MTL::Library* Pipelines::library(const Launch& launch) {
  Owned<MTL::Library>& library = libraries_[std::string(launch.file) + " " + element_name(launch.type)];
  if (library) return library.get();
  const CompiledKernels compiled = kernel_library(launch.file, element_name(launch.type));
  library = compiled.data ? load(device_.metal(), compiled, launch) : compile_text(device_.metal(), launch);
  return library.get();
}

}  // namespace onnx_moe::metal
