// What every file that talks to Metal needs: owning pointers, strings, errors.
#pragma once

#include <Metal/Metal.hpp>
#include <string>

#include "core/error.h"

namespace onnx_moe::metal {

template <typename T>
using Owned = NS::SharedPtr<T>;

// Objects that Metal autoreleases go when this does: one on every thread that calls Metal.
class AutoreleaseScope {
 public:
  AutoreleaseScope() : pool_(NS::TransferPtr(NS::AutoreleasePool::alloc()->init())) {}

 private:
  Owned<NS::AutoreleasePool> pool_;
};

inline NS::String* text(const std::string& value) { return NS::String::string(value.c_str(), NS::UTF8StringEncoding); }

inline std::string message(const NS::Error* error) {
  return error ? error->localizedDescription()->utf8String() : "Metal gave no reason";
}

}  // namespace onnx_moe::metal
