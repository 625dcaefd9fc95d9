#include "faults.h"

#include <dlfcn.h>
#if defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cstdio>
#include <string>

#include "threadgroup.h"

namespace fibers {

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr size_t kStack = size_t{64} << 10;

// Launches that run at once share them: handlers are the whole process's.
struct sigaction previous[sizeof kSignals / sizeof kSignals[0]];

// Where in its library the fault is.
uint64_t instruction(void* context) {
#if defined(__x86_64__)
  Dl_info library;
  auto* const address = reinterpret_cast<char*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
  if (dladdr(address, &library)) return static_cast<uint64_t>(address - static_cast<char*>(library.dli_fbase));
#endif
  (void)context;
  return 0;
}

std::string message(Threadgroup& group, int signal, const siginfo_t& information) {
  const std::string thread = group.describe(*group.fiber());
  if (signal == SIGFPE) return "integer division by zero in " + thread;
  if (signal == SIGILL) return "illegal instruction in " + thread;
  auto* const address = static_cast<const char*>(information.si_addr);
  char number[32];
  std::snprintf(number, sizeof number, "%p", information.si_addr);
  return "invalid access by " + thread + ": address " + number + ", " + group.describe(address);
}

void on_fault(int signal, siginfo_t* information, void* context) {
  Threadgroup* const group = Threadgroup::current();
  if (!group || !group->fiber()) {  // not a kernel's
    for (size_t i = 0; i < sizeof kSignals / sizeof kSignals[0]; ++i) {
      if (kSignals[i] == signal) sigaction(signal, &previous[i], nullptr);
    }
    return;
  }
  group->launch().fault = instruction(context);
  group->abandon(message(*group, signal, *information));
}

}  // namespace

FaultHandlers::FaultHandlers() : stack_(kStack) {
  stack_t stack{};
  stack.ss_sp = stack_.data();
  stack.ss_size = kStack;
  sigaltstack(&stack, &previous_stack_);
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  // The handler is left by changing to another stack, never by returning.
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (size_t i = 0; i < sizeof kSignals / sizeof kSignals[0]; ++i) sigaction(kSignals[i], &action, &previous[i]);
}

FaultHandlers::~FaultHandlers() {
  for (size_t i = 0; i < sizeof kSignals / sizeof kSignals[0]; ++i) sigaction(kSignals[i], &previous[i], nullptr);
  sigaltstack(&previous_stack_, nullptr);
}

}  // namespace fibers
