// A small Objective-C runtime: classes of C++ functions by selector, reference counts, autorelease pools. It ends the
// process on what a driver would not forgive: an unknown selector, a message to a freed object, one release too many.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "objc/runtime.h"

namespace fake {

inline constexpr uint64_t kMostThreads = 1024;  // of a threadgroup

struct Buffer {
  std::vector<char> owned;
  char* bytes = nullptr;
  uint64_t size = 0;
};

struct Object;

// An object that another one holds.
class Reference {
 public:
  Reference() = default;
  explicit Reference(Object* object);
  // Takes over the reference that whoever created the object holds.
  static Reference owning(Object* object);
  Reference(const Reference& other);
  Reference& operator=(Reference other);
  ~Reference();
  Object* get() const { return object_; }
  Object* operator->() const { return object_; }

 private:
  Object* object_ = nullptr;
};

struct Argument {
  Reference buffer;
  uint64_t offset = 0;
  std::vector<char> bytes;
};

struct Size {
  uint64_t width, height, depth;
};

struct Dispatch {
  Reference pipeline;
  std::vector<Argument> arguments;
  Size threadgroups;
  Size threads;
};

// Every class's state in one: the simulator has few objects.
struct Object {
  std::string class_name;
  int references = 1;
  std::string text;
  Buffer memory;
  std::vector<uint32_t> constants;  // function constants by number
  Reference library;
  Reference error;
  // Of an encoder and of its command buffer.
  Reference pipeline;
  Reference commands;
  std::vector<Argument> arguments;
  std::vector<Dispatch> dispatches;
  uint64_t status = 0;
  bool encoding = false;
  bool changed = false;  // a residency set since its last commit
  // Entry points of compiled code.
  void* function = nullptr;
  void* launch = nullptr;
  void* set_constants = nullptr;
};

using Method = void*;

Object* create(const std::string& class_name);
Object* autoreleased(Object* object);
void define(const std::string& class_name, const std::string& selector, Method method);
[[noreturn]] void misuse(const std::string& what);

template <typename Function>
void method(const char* class_name, const char* selector, Function* function) {
  define(class_name, selector, reinterpret_cast<Method>(function));
}

// The number in the environment's ONNX_MOE_SIMULATOR_<name>.
int64_t setting(const std::string& name, int64_t otherwise);
// An autoreleased string.
Object* make_string(const std::string& text);
// Stores an autoreleased error, as Cocoa's out-parameters take it; returns null.
Object* failed(Object** error, const std::string& text);

// The classes of each file.
void define_library_classes();
void define_memory_classes();
void define_command_classes();

}  // namespace fake
