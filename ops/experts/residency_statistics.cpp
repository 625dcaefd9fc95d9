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
  JsonObject& add(const char* name, double value) {
    std::ostringstream text;
    text << value;
    return add_raw(name, text.str());
  }
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

void add_counts(JsonObject& object, const PrefetchCounts& counts) {
  object.add("predicted", counts.predicted).add("correct", counts.correct).add("used", counts.used);
  object.add("candidates", counts.candidates).add("useful", counts.useful).add("issued", counts.issued);
  object.add("timely", counts.timely).add("late", counts.late).add("wasted", counts.wasted);
  object.add("cancelled", counts.cancelled);
}

}  // namespace

std::string ResidencyStatistics::to_json() const {
  std::string of_layers;
  PrefetchCounts prefetch;
  int64_t prefetching = 0;
  for (const LayerResidency& layer : layers) {
    JsonObject object;
    object.add("node", layer.node)
        .add("expert_bytes", layer.expert_bytes)
        .add("hits", layer.hits)
        .add("misses", layer.misses)
        .add("resident", layer.resident);
    if (!prefetch_signal.empty()) {
      JsonObject ahead;
      ahead.add("on", layer.prefetching);
      add_counts(ahead, layer.prefetch);
      object.add_raw("prefetch", ahead.text());
      prefetch += layer.prefetch;
      prefetching += layer.prefetching;
    }
    of_layers += (of_layers.empty() ? "" : ", ") + object.text();
  }
  JsonObject object;
  object.add("mode", mode)
      .add("reason", reason)
      .add("unused", unused)
      .add("policy", policy)
      .add("direct_io", direct_io);
  object.add("expert_bytes", expert_bytes).add("budget_bytes", budget_bytes).add("cycle_bytes", cycle_bytes);
  object.add("slot_bytes", slot_bytes).add("capacity", capacity).add("staging", staging);
  object.add("layer_floor", layer_floor).add("share", share).add("resident", resident);
  object.add("calls", calls).add("lookups", hits + misses).add("hits", hits).add("misses", misses);
  object.add("bypassed", bypassed).add("joined", joined).add("evictions", evictions).add("waves", waves);
  object.add("bytes_read", bytes_read).add("failed_loads", failed_loads);
  object.add("pinned", pinned).add("warm_start_bytes", warm_start_bytes);
  if (!prefetch_signal.empty()) {
    JsonObject ahead;
    ahead.add("signal", prefetch_signal).add("least_precision", prefetch_precision);
    ahead.add("slots", speculative_slots).add("bytes_read", speculative_bytes).add("layers_on", prefetching);
    add_counts(ahead, prefetch);
    object.add_raw("prefetch", ahead.text());
  }
  object.add("stall_ns", stall_ns).add("bookkeeping_ns", bookkeeping_ns);
  object.add_raw("layers", "[" + of_layers + "]");
  return object.text();
}

}  // namespace onnx_moe
