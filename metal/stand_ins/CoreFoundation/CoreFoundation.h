// Cross-build stand-in for Apple's CoreFoundation umbrella header: only what metal-cpp uses.
#pragma once
#include <math.h>
#include <stdint.h>
typedef double CFTimeInterval;
