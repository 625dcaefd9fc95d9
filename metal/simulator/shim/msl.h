// Everything that a translated kernel file sees: the Metal Shading Language's vocabulary as C++17, as far as kernels
// use it; another name is an error of the compilation.
//
// One of three macros says for whom: MSL_CPU (simdgroup functions on the fibers of fibers/), MSL_CUDA (nvcc: a
// simdgroup is a warp) or MSL_CHECK (clang's C++ for OpenCL, whose address spaces are types; nothing is run). No
// standard header is included: neither C's nor CUDA's float4, min or abs may meet MSL's, which are all in namespace
// mslns.
#pragma once

#include "atomic.h"
#include "matrix.h"
#include "positions.h"
#include "simdgroup.h"
