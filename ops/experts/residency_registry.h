// The residency engines of the process, by session.
#pragma once

#include <memory>
#include <string>

#include "experts/residency_engine.h"

namespace onnx_moe {

// The engine of the session that `session` (an address of its own) stands for: the one that its other kernels hold, or
// a new one with these options and `decided`. `name` is what find_engine() calls it.
std::shared_ptr<ResidencyEngine> session_engine(const void* session, const std::string& name,
                                                const ResidencyOptions& options, ResidencyEngine::Decided decided);

// Throws an Error when no living session has the name; the latest, when several have.
std::shared_ptr<ResidencyEngine> find_engine(const std::string& name);

}  // namespace onnx_moe
