// What differs between the targets: function attributes, address spaces, and the runtime's functions.
#pragma once

#if (defined(MSL_CPU) + defined(MSL_CUDA) + defined(MSL_CHECK)) != 1
#error "define one of MSL_CPU, MSL_CUDA and MSL_CHECK"
#endif

// MSL_F: a function that runs on the device. MSL_V: one of values, which CUDA's host compiler sees as well.
#if defined(MSL_CUDA)
#define MSL_F __device__ __forceinline__
#define MSL_V __host__ __device__ __forceinline__
#define MSL_MEMCPY ::memcpy
#else
#define MSL_F inline
#define MSL_V inline
#define MSL_MEMCPY __builtin_memcpy
#endif

// Address spaces inside these headers; MSL_EACH_SHARED expands a macro for device and for threadgroup memory.
#if defined(MSL_CHECK)
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define MSL_THREAD __private
#define MSL_EACH_SHARED(X) X(__global) X(__local)
#else
#define MSL_THREAD
#define MSL_EACH_SHARED(X) X()
#endif

// The place of a call, for the diagnostics of fibers: line · 1024 + column. GCC gives no column: there, two calls on
// one line count as one.
#if defined(MSL_CPU)
#if defined(__clang__)
#define MSL_POSITION() (__builtin_LINE() * 1024 + (__builtin_COLUMN() & 1023))
#else
#define MSL_POSITION() (__builtin_LINE() * 1024)
#endif
#define MSL_PLACE_ONLY const char *msl_file = __builtin_FILE(), int msl_position = MSL_POSITION()
#define MSL_PLACE , MSL_PLACE_ONLY
#define MSL_HERE_ONLY msl_file, msl_position
#define MSL_HERE , MSL_HERE_ONLY
// Reads and writes the registers of other lanes, which is no data race.
#define MSL_COLLECTIVE __attribute__((noinline, no_sanitize("thread")))

extern "C" {
// Called once for all lanes that arrive: `lanes` has the argument of each, null for those that are not in `active`.
typedef void (*mslrt_collective)(void** lanes, unsigned active);
void mslrt_simd(mslrt_collective function, void* argument, const char* name, const char* file, int position);
void mslrt_barrier(unsigned flags, const char* file, int position);
void* mslrt_tg_var(unsigned id, unsigned long size, const char* name);
unsigned mslrt_lane(void);
}
#else
#define MSL_PLACE_ONLY
#define MSL_PLACE
#define MSL_HERE_ONLY
#define MSL_HERE
#endif
