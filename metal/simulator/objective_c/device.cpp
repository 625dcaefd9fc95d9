// A Metal device of fibers, for tests of the host runtime: it holds its caller to Metal's rules and reports a kernel's
// misuse as the command buffer's error. What it pretends to be is in the environment: ONNX_MOE_SIMULATOR_NO_DEVICE,
// _MACOS (15), _GPU_FAMILY (1007, which is Apple7), _SIMD_WIDTH (32), _WORKING_SET, _MOST_BUFFER_BYTES, _NO_WRAPS,
// _NO_RESIDENCY.
#include <atomic>
#include <cstdlib>

#include "runtime.h"

namespace fake {

namespace {

std::atomic<uint64_t> devices_asked_for{0};

struct Version {
  int64_t major, minor, patch;
};

void define_foundation_classes() {
  method(
      "NSString",
      "stringWithCString:encoding:", +[](Object*, SEL, const char* text, uint64_t) { return make_string(text); });
  method("NSString", "UTF8String", +[](Object* string) { return string->text.c_str(); });
  method("NSError", "localizedDescription", +[](Object* error) { return make_string(error->text); });
  method(
      "NSProcessInfo", "processInfo", +[](Object*) {
        static Object* const process = create("NSProcessInfo");
        return process;
      });
  method("NSProcessInfo", "operatingSystemVersionString", +[](Object*) { return make_string("simulated"); });
  // By value: Objective-C passes a structure of this size in memory.
  method(
      "NSProcessInfo", "isOperatingSystemAtLeastVersion:", +[](Object*, SEL, Version version) {
        return setting("MACOS", 15) >= version.major;
      });
}

}  // namespace

int64_t setting(const std::string& name, int64_t otherwise) {
  const char* const given = std::getenv(("ONNX_MOE_SIMULATOR_" + name).c_str());
  return given ? std::atoll(given) : otherwise;
}

Object* make_string(const std::string& text) {
  Object* string = autoreleased(create("NSString"));
  string->text = text;
  return string;
}

Object* failed(Object** error, const std::string& text) {
  if (error) {
    *error = autoreleased(create("NSError"));
    (*error)->text = text;
  }
  return nullptr;
}

}  // namespace fake

extern "C" {
fake::Object* MTLCreateSystemDefaultDevice() {
  ++fake::devices_asked_for;
  if (std::getenv("ONNX_MOE_SIMULATOR_NO_DEVICE")) return nullptr;
  fake::define_foundation_classes();
  fake::define_library_classes();
  fake::define_memory_classes();
  fake::define_command_classes();
  fake::method(
      "Device", "supportsFamily:", +[](fake::Object*, SEL, int64_t family) {
        return fake::setting("GPU_FAMILY", 1007) >= family;
      });
  fake::method("Device", "name", +[](fake::Object*) { return fake::make_string("Simulated GPU"); });
  return fake::create("Device");
}
// How often somebody looked for a device.
__attribute__((visibility("default"))) uint64_t onnx_moe_simulator_devices_asked_for() {
  return fake::devices_asked_for;
}
fake::Object* MTLCopyAllDevices() { return nullptr; }
fake::Object* MTLCopyAllDevicesWithObserver(fake::Object**, void*) { return nullptr; }
void MTLRemoveDeviceObserver(fake::Object*) {}
}
