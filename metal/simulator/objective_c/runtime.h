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

// Every class's state in one: the simulator has few objects.
struct Object {
  std::string class_name;
  int references = 1;
  std::string text;
  Buffer memory;
  std::map<uint64_t, uint64_t> constants;
  std::vector<Argument> arguments;
  Reference pipeline;
  Reference commands;
  Reference error;
  int status = 0;
  void* function = nullptr;
  void* launch = nullptr;
};

using Method = void*;

Object* create(const std::string& class_name);
Object* autoreleased(Object* object);
void define(const std::string& class_name, const std::string& selector, Method method);
[[noreturn]] void misuse(const std::string& what);

}  // namespace fake
