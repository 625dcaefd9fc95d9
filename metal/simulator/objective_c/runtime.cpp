#include "runtime.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <unordered_set>

namespace fake {

namespace {

// metal-cpp registers selectors while the library loads: everything here exists from its first use.
struct State {
  std::recursive_mutex mutex;
  std::set<std::string> selectors;
  std::map<std::string, std::unique_ptr<Object>> classes;
  std::map<std::pair<std::string, std::string>, Method> methods;
  std::unordered_set<Object*> live;
};

State& state() {
  static State instance;
  return instance;
}

thread_local std::vector<std::pair<Object*, std::vector<Object*>>> pools;

// By address alone: an object that was freed must not be looked into.
bool is_class(const Object* object) {
  const auto& classes = state().classes;
  return std::any_of(classes.begin(), classes.end(), [&](const auto& named) { return named.second.get() == object; });
}

Object* retain(Object* object) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  ++object->references;
  return object;
}

void release(Object* object) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  if (!state().live.count(object)) misuse("release of a freed object");
  if (--object->references > 0) return;
  state().live.erase(object);
  std::unique_ptr<Object> last(object);
}

Object* new_pool(Object*) {
  Object* pool = create("NSAutoreleasePool");
  pools.push_back({pool, {}});
  return pool;
}

void drain(Object* pool) {
  if (pools.empty() || pools.back().first != pool) misuse("autorelease pools are not drained in reverse order");
  for (Object* object : pools.back().second) release(object);
  pools.pop_back();
  release(pool);
}

Object* same(Object* object) { return object; }
Object* allocate(Object* type) { return create(type->class_name); }
uint64_t nothing() { return 0; }

bool answers(Object* object, SEL, const char* selector) {
  return state().methods.count({object->class_name, selector}) != 0;
}

Method inherited(const std::string& class_name, const std::string& selector) {
  if (class_name == "NSAutoreleasePool" && selector == "alloc") return reinterpret_cast<Method>(new_pool);
  if (class_name == "NSAutoreleasePool" && (selector == "release" || selector == "drain")) {
    return reinterpret_cast<Method>(drain);
  }
  if (selector == "alloc") return reinterpret_cast<Method>(allocate);
  if (selector == "init") return reinterpret_cast<Method>(same);
  if (selector == "retain") return reinterpret_cast<Method>(retain);
  if (selector == "release") return reinterpret_cast<Method>(release);
  if (selector == "autorelease") return reinterpret_cast<Method>(autoreleased);
  if (selector == "respondsToSelector:") return reinterpret_cast<Method>(answers);
  misuse(class_name + " does not answer " + selector);
}

}  // namespace

Reference::Reference(Object* object) : object_(object ? retain(object) : nullptr) {}
Reference Reference::owning(Object* object) {
  Reference reference;
  reference.object_ = object;
  return reference;
}
Reference::Reference(const Reference& other) : Reference(other.object_) {}
Reference& Reference::operator=(Reference other) {
  std::swap(object_, other.object_);
  return *this;
}
Reference::~Reference() {
  if (object_) release(object_);
}

Object* create(const std::string& class_name) {
  auto object = std::make_unique<Object>();
  object->class_name = class_name;
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  state().live.insert(object.get());
  return object.release();
}

Object* autoreleased(Object* object) {
  if (pools.empty()) misuse("an object of " + object->class_name + " is autoreleased without a pool, and would leak");
  pools.back().second.push_back(object);
  return object;
}

void define(const std::string& class_name, const std::string& selector, Method method) {
  state().methods[{class_name, selector}] = method;
}

void misuse(const std::string& what) {
  std::fprintf(stderr, "fake Metal: %s\n", what.c_str());
  std::abort();
}

}  // namespace fake

using fake::state;

extern "C" {

SEL sel_registerName(const char* name) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  return reinterpret_cast<SEL>(const_cast<char*>(state().selectors.insert(name).first->c_str()));
}

void* objc_lookUpClass(const char* name) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  auto& type = state().classes[name];
  if (!type) {
    type = std::make_unique<fake::Object>();
    type->class_name = name;
  }
  return type.get();
}

void* objc_getProtocol(const char*) { return nullptr; }

// The function that answers a message; objc_msgSend jumps there with the message's own arguments.
void* fake_metal_resolve(fake::Object* receiver, const char* selector) {
  if (!receiver) return reinterpret_cast<void*>(fake::nothing);
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  if (!state().live.count(receiver) && !fake::is_class(receiver)) {
    fake::misuse(std::string(selector) + " is sent to a freed object");
  }
  const auto method = state().methods.find({receiver->class_name, selector});
  return method != state().methods.end() ? method->second : fake::inherited(receiver->class_name, selector);
}

// Objects that are alive: what a call leaves behind, it leaks.
__attribute__((visibility("default"))) uint64_t onnx_moe_simulator_live_objects() {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  return state().live.size();
}

void* _NSConcreteStackBlock[32];
void _Block_object_assign(void*, const void*, int) {}
void _Block_object_dispose(const void*, int) {}
}

// Keeps all argument registers of the x86-64 calling convention over the look-up.
asm(R"(
.macro FAKE_METAL_SEND receiver selector
  push %rbp
  mov %rsp, %rbp
  sub $192, %rsp
  mov %rdi, 0(%rsp)
  mov %rsi, 8(%rsp)
  mov %rdx, 16(%rsp)
  mov %rcx, 24(%rsp)
  mov %r8, 32(%rsp)
  mov %r9, 40(%rsp)
  movups %xmm0, 64(%rsp)
  movups %xmm1, 80(%rsp)
  movups %xmm2, 96(%rsp)
  movups %xmm3, 112(%rsp)
  mov \receiver, %rdi
  mov \selector, %rsi
  call fake_metal_resolve@PLT
  mov %rax, %r11
  mov 0(%rsp), %rdi
  mov 8(%rsp), %rsi
  mov 16(%rsp), %rdx
  mov 24(%rsp), %rcx
  mov 32(%rsp), %r8
  mov 40(%rsp), %r9
  movups 64(%rsp), %xmm0
  movups 80(%rsp), %xmm1
  movups 96(%rsp), %xmm2
  movups 112(%rsp), %xmm3
  leave
  jmp *%r11
.endm
.globl objc_msgSend
objc_msgSend: FAKE_METAL_SEND %rdi %rsi
.globl objc_msgSend_fpret
objc_msgSend_fpret: FAKE_METAL_SEND %rdi %rsi
.globl objc_msgSend_stret
objc_msgSend_stret: FAKE_METAL_SEND %rsi %rdx
)");
