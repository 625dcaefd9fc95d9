// Where an operator runs: the session's entry onnx_moe.device, one of auto, metal and cpu.
#pragma once

#include <string>

#include "ort/api.h"

namespace onnx_moe {

enum class Device { kCpu, kMetal };

// Throws an Error when the entry asks for a device that this library or this machine lacks.
Device read_device(const ort::KernelInfo& info);

// For operators that have no Metal form: checks the entry too, and logs once a node that the CPU computes it.
void expect_cpu(const ort::KernelInfo& info, const std::string& label);

}  // namespace onnx_moe
