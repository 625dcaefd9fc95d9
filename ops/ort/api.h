// ONNX Runtime's C API as ordinary C++: statuses become exceptions, handles are released by their owners.
#pragma once

#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/parallel.h"
#include "ort/abi.h"
#include "ort/dimensions.h"

namespace onnx_moe::ort {

// Throws an Error with the status's message, and releases the status.
void check(const OrtApi* api, OrtStatus* status);

// Runs a callback of ONNX Runtime's: exceptions become statuses, prefixed with `who`.
template <typename Body>
OrtStatus* guarded(const OrtApi* api, const std::string& who, Body&& body) {
  const auto message = [&](const char* what) { return who.empty() ? std::string(what) : who + ": " + what; };
  try {
    body();
    return nullptr;
  } catch (const Error& error) {
    return CreateStatus(api, kInvalidArgument, message(error.what()).c_str());
  } catch (const std::bad_alloc&) {
    return CreateStatus(api, kRuntimeException, message("out of memory").c_str());
  } catch (const std::exception& error) {
    return CreateStatus(api, kRuntimeException, message(error.what()).c_str());
  }
}

// Type and shape of a tensor; a dimension that is not known is -1, with its name if it has one.
struct Shape {
  int type = kAnyType;
  bool has_rank = false;
  std::vector<int64_t> dimensions;
  std::vector<std::string> symbols;

  size_t rank() const { return dimensions.size(); }
};

Shape read_shape(const OrtApi* api, const OrtTensorTypeAndShapeInfo* info);

// Bytes of an element; throws for types that the operators do not take.
int64_t element_bytes(int type);

class ConstTensor {
 public:
  ConstTensor(const OrtApi* api, const OrtValue* value);

  int type() const { return type_; }
  const Dimensions& dimensions() const { return dimensions_; }
  const void* data() const { return data_; }
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data_);
  }

 private:
  int type_ = 0;
  Dimensions dimensions_;
  const void* data_ = nullptr;
};

// A session's log, for as long as the session lives. Any thread.
class Logger {
 public:
  Logger(const OrtApi* api, const OrtLogger* logger) : api_(api), logger_(logger) {}

  void warn(const std::string& message) const;
  void note(const std::string& message) const;
  // Stands for the session: the same for all its kernels, and no other living session's.
  const void* session() const { return logger_; }

 private:
  void log(int severity, const std::string& message) const;

  const OrtApi* api_;
  const OrtLogger* logger_;
};

// What a kernel learns about its node at creation.
class KernelInfo {
 public:
  KernelInfo(const OrtApi* api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  std::string node_name() const;
  size_t input_count() const;
  // Type and shape that the graph declares; nothing for an input that is left out.
  std::optional<Shape> input_shape(size_t index) const;
  // Attributes: nothing when absent; a wrong type throws.
  std::optional<int64_t> int_attribute(const std::string& name) const;
  std::optional<float> float_attribute(const std::string& name) const;
  std::optional<std::string> string_attribute(const std::string& name) const;
  // Entry of the session's configuration; nothing when absent.
  std::optional<std::string> config_entry(const std::string& key) const;
  // An input that is a constant of the graph; its memory stays as long as the session. Nothing for others.
  std::optional<ConstTensor> constant_input(size_t index) const;
  Logger logger() const;
  OrtAllocator* allocator() const;

 private:
  const OrtApi* api_;
  const OrtKernelInfo* info_;
};

// Inputs and outputs of one call; also the core's host for it: ONNX Runtime's threads and allocator.
class KernelContext final : public Host {
 public:
  KernelContext(const OrtApi* api, OrtKernelContext* context, OrtAllocator* allocator)
      : api_(api), context_(context), allocator_(allocator) {}

  // Nothing for an optional input that is left out.
  std::optional<ConstTensor> input(size_t index) const;
  ConstTensor required_input(size_t index, const char* name) const;
  // Memory of an output of this shape; null for an optional output that is left out.
  void* output(size_t index, const Dimensions& dimensions) const;

  void parallel_for(Task task, void* state, size_t count) override;
  void* allocate(size_t bytes) override { return allocator_->Alloc(allocator_, bytes); }
  void release(void* memory) override { allocator_->Free(allocator_, memory); }

 private:
  const OrtApi* api_;
  OrtKernelContext* context_;
  OrtAllocator* allocator_;
};

class ShapeInference {
 public:
  ShapeInference(const OrtApi* api, OrtShapeInferContext* context) : api_(api), context_(context) {}

  // Nothing for an input that is left out.
  std::optional<Shape> input(size_t index) const;
  std::optional<int64_t> int_attribute(const char* name) const;
  void set_output(size_t index, const Shape& shape) const;

 private:
  const OrtApi* api_;
  OrtShapeInferContext* context_;
};

}  // namespace onnx_moe::ort
