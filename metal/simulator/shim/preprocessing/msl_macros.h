// The macros of metal_stdlib that kernels use, for the preprocessing step.
#pragma once
#define INFINITY (::mslns::msl_infinity())
#define NAN (::mslns::msl_nan())
#define FLT_MAX 0x1.fffffep127f
#define FLT_MIN 0x1p-126f
#define FLT_EPSILON 0x1p-23f
#define UINT_MAX 0xFFFFFFFFu
