#include "experts/residency_statistics.h"

#include <cstdio>
#include <sstream>

namespace onnx_moe {

namespace {

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      result += escape;
    } else {
      result += c;
    }
  }
  return result + '"';
}

class JsonObject {
 public:
  JsonObject& add(const char* name, int64_t value) { return add_raw(name, std::to_string(value)); }
  JsonObject& add(const char* name, bool value) { return add_raw(name, value ? "true" : "false"); }
  JsonObject& add(const char* name, const std::string& value) { return add_raw(name, quoted(value)); }
  JsonObject& add_raw(const char* name, const std::string& json) {
    text_ << (first_ ? "{" : ", ") << quoted(name) << ": " << json;
    first_ = false;
    return *this;
  }
  std::string text() const { return text_.str() + "}"; }

 private:
  std::ostringstream text_;
  bool first_ = true;
};

}  // namespace

std::string ResidencyStatistics::to_json() const {
  std::string of_layers;
  for (const LayerResidency& layer : layers) {
    JsonObject object;
    object.add("node", layer.node).add("hits", layer.hits).add("misses", layer.misses).add("resident", layer.resident);
    of_layers += (of_layers.empty() ? "" : ", ") + object.text();
  }
  JsonObject object;
  object.add("mode", mode).add("reason", reason).add("policy", policy).add("direct_io", direct_io);
  object.add("expert_bytes", expert_bytes).add("budget_bytes", budget_bytes).add("cycle_bytes", cycle_bytes);
  object.add("slot_bytes", slot_bytes).add("capacity", capacity).add("staging", staging);
  object.add("layer_floor", layer_floor).add("share", share).add("resident", resident);
  object.add("calls", calls).add("lookups", hits + misses).add("hits", hits).add("misses", misses);
  object.add("bypassed", bypassed).add("joined", joined).add("evictions", evictions).add("waves", waves);
  object.add("bytes_read", bytes_read).add("failed_loads", failed_loads);
  object.add("stall_ns", stall_ns).add("bookkeeping_ns", bookkeeping_ns);
  object.add_raw("layers", "[" + of_layers + "]");
  return object.text();
}

}  // namespace onnx_moe
