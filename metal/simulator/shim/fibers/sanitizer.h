// What ThreadSanitizer is told in builds with it (MSL_TSAN): each fiber is a thread, and tokens say what orders their
// memory. Nothing in other builds.
#pragma once

#if defined(MSL_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace fibers::sanitizer {

#if defined(MSL_TSAN)
using Thread = void*;
inline Thread create() { return __tsan_create_fiber(0); }
inline Thread current() { return __tsan_get_current_fiber(); }
inline void change_to(Thread thread) { __tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync); }
inline void acquire(void* token) { __tsan_acquire(token); }
inline void release(void* token) { __tsan_release(token); }
#else
struct Thread {};
inline Thread create() { return {}; }
inline Thread current() { return {}; }
inline void change_to(Thread) {}
inline void acquire(void*) {}
inline void release(void*) {}
#endif

}  // namespace fibers::sanitizer
