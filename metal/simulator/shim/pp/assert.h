#include "msl_macros.h"  // names come from shim/msl.h
