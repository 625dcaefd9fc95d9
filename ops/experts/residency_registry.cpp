#include "experts/residency_registry.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "core/error.h"

namespace onnx_moe {

namespace {

struct Registered {
  const void* session;
  std::string name;
  std::weak_ptr<ResidencyEngine> engine;  // the session's kernels own it
};

struct Registry {
  std::mutex mutex;
  std::vector<Registered> engines;
};

Registry& registry() {
  static Registry all;
  return all;
}

}  // namespace

std::shared_ptr<ResidencyEngine> session_engine(const void* session, const std::string& name,
                                                const ResidencyOptions& options, ResidencyEngine::Decided decided) {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto ended = [](const Registered& each) { return each.engine.expired(); };
  all.engines.erase(std::remove_if(all.engines.begin(), all.engines.end(), ended), all.engines.end());
  for (const Registered& each : all.engines) {
    std::shared_ptr<ResidencyEngine> engine = each.engine.lock();
    if (engine && each.session == session && each.name == name) return engine;
  }
  auto engine = std::make_shared<ResidencyEngine>(options, std::move(decided));
  all.engines.push_back({session, name, engine});
  return engine;
}

std::shared_ptr<ResidencyEngine> find_engine(const std::string& name) {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (auto each = all.engines.rbegin(); each != all.engines.rend(); ++each) {
    std::shared_ptr<ResidencyEngine> engine = each->engine.lock();
    if (engine && each->name == name) return engine;
  }
  fail("no session with onnx_moe.session = '", name, "' is alive: create it with onnx_moe.InferenceSession");
}

}  // namespace onnx_moe
