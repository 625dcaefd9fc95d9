#include "kernels/registry.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"

namespace onnx_moe {

#if defined(__x86_64__)
#ifdef ONNX_MOE_AMX
extern const Kernel kAvx512AmxKernel;
#endif
extern const Kernel kAvx512VbmiKernel;
extern const Kernel kAvx512VnniKernel;
extern const Kernel kAvx512Kernel;
extern const Kernel kAvx2VnniKernel;
extern const Kernel kAvx2Kernel;
#elif defined(__aarch64__)
#ifdef __linux__
extern const Kernel kNeonI8mmKernel;
#endif
extern const Kernel kNeonDotprodKernel;
extern const Kernel kNeonKernel;
#endif
extern const Kernel kReferenceKernel;

namespace {

const std::vector<const Kernel*>& available_kernels() {
  static const std::vector<const Kernel*> kernels = [] {
    const Kernel* compiled[] = {
#if defined(__x86_64__)
#ifdef ONNX_MOE_AMX
        &kAvx512AmxKernel,
#endif
        &kAvx512VbmiKernel, &kAvx512VnniKernel, &kAvx512Kernel, &kAvx2VnniKernel, &kAvx2Kernel,
#elif defined(__aarch64__)
#ifdef __linux__
        &kNeonI8mmKernel,
#endif
        &kNeonDotprodKernel, &kNeonKernel,
#endif
        &kReferenceKernel};
    std::vector<const Kernel*> usable;
    for (const Kernel* kernel : compiled) {
      if (kernel->supported()) usable.push_back(kernel);
    }
    return usable;
  }();
  return kernels;
}

bool enabled(const Kernel& kernel) { return !kernel.enable || kernel.enable(); }

const Kernel* find_kernel(const std::string& name) {
  std::string names = "auto";
  for (const Kernel* kernel : available_kernels()) {
    if (name == "auto" && enabled(*kernel)) return kernel;
    if (name == kernel->name) {
      require(enabled(*kernel), "kernel '", name, "' is refused by the system: use auto");
      return kernel;
    }
    names += std::string(", ") + kernel->name;
  }
  fail("kernel '", name, "' is not one that this machine can run: use one of ", names);
}

// The process-wide choice; null until something is chosen.
std::atomic<const Kernel*>& chosen_kernel() {
  static std::atomic<const Kernel*> kernel{nullptr};
  return kernel;
}

}  // namespace

const Kernel* available_kernel(int index) {
  const auto& kernels = available_kernels();
  return index >= 0 && index < static_cast<int>(kernels.size()) ? kernels[static_cast<size_t>(index)] : nullptr;
}

const Kernel& current_kernel() {
  if (const Kernel* kernel = chosen_kernel().load(std::memory_order_acquire)) return *kernel;
  const char* environment = std::getenv("ONNX_MOE_KERNEL");
  try {
    const Kernel* kernel = find_kernel(environment && *environment ? environment : "auto");
    chosen_kernel().store(kernel, std::memory_order_release);
    return *kernel;
  } catch (const Error& error) {
    fail("environment variable ONNX_MOE_KERNEL: ", error.what());
  }
}

void use_kernel(const char* name) { chosen_kernel().store(find_kernel(name), std::memory_order_release); }

}  // namespace onnx_moe
