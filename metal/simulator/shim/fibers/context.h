// A stack of its own for a flow of control, and changing from one to another: on x86-64 a dozen instructions, elsewhere
// ucontext, which calls the system.
#pragma once

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace fibers {

#if defined(__x86_64__)
using Context = void*;  // the stack pointer, the registers that calls preserve on the stack
#else
using Context = ucontext_t;
#endif

// Saves this flow in `from` and goes on with `to`.
void change(Context& from, Context& to);

// Has `context` begin in `entry`, which never returns, on the stack of `bytes` below `top`.
void begin_at(Context& context, char* top, unsigned long bytes, void (*entry)());

}  // namespace fibers
