// Signals that a kernel raises: the launch ends with a message that names the GPU's thread and the address.
#pragma once

#include <csignal>
#include <vector>

namespace fibers {

// Handles faults of this process while it lives, on a stack of its own. Others' faults go where they went before.
class FaultHandlers {
 public:
  FaultHandlers();
  ~FaultHandlers();
  FaultHandlers(const FaultHandlers&) = delete;
  FaultHandlers& operator=(const FaultHandlers&) = delete;

 private:
  std::vector<char> stack_;
  stack_t previous_stack_{};
};

}  // namespace fibers
