#include "context.h"

#include <cstdint>

#if defined(__x86_64__)

extern "C" void fibers_change(void** from, void* to);
asm(R"(
  .text
  .globl fibers_change
  .hidden fibers_change
  .type fibers_change,@function
fibers_change:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size fibers_change,.-fibers_change
)");

namespace fibers {

void change(Context& from, Context& to) { fibers_change(&from, to); }

void begin_at(Context& context, char* top, unsigned long, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  auto** stack = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{63});
  *--stack = nullptr;  // a return address, so that the stack is aligned as after a call
  *--stack = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--stack = nullptr;
  context = stack;
}

}  // namespace fibers

#else

namespace fibers {

void change(Context& from, Context& to) { swapcontext(&from, &to); }

void begin_at(Context& context, char* top, unsigned long bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_size = bytes;
  context.uc_stack.ss_sp = top - bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

}  // namespace fibers

#endif
