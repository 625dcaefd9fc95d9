// Of builds without a device backend.
#include "core/accelerator.h"

namespace onnx_moe {

const AcceleratorSearch& find_accelerator() {
  static const AcceleratorSearch none{nullptr, "this library was built without Metal", false};
  return none;
}

}  // namespace onnx_moe
