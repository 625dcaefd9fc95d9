// How much each expert has been used lately, and files of that: ONNX Runtime's text format of expert counters.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "experts/bank.h"

namespace onnx_moe {

// Σ decay^(visits of its layer since), over the visits that used an expert. Equal histories, of whatever layers,
// compare as exactly equal.
class UseCounters {
 public:
  // decay in (0, 1]: 0.95 halves a use in about 14 tokens; 1 is a plain count.
  UseCounters(const ExpertBank& bank, double decay);

  void visit(int64_t layer) { ++visits_[static_cast<size_t>(layer)]; }
  void use(int64_t key);
  // As if it had been used so much until now.
  void set(int64_t key, double value);
  double value(int64_t key) const;
  bool less(int64_t a, int64_t b) const;
  // Asks the processor for what use() will read.
  void prefetch(int64_t key) const { __builtin_prefetch(&uses_[static_cast<size_t>(key)], 1); }
  const ExpertBank& bank() const { return bank_; }

 private:
  struct Use {
    double frequency = 0;  // as of the visit below
    int64_t visit = 0;
  };

  int64_t age(int64_t key) const;
  double power(int64_t exponent) const;

  ExpertBank bank_;
  double decay_;
  std::vector<double> powers_;
  std::vector<int64_t> visits_;  // by layer
  std::vector<Use> uses_;        // by key
};

// A file of counters: "moe_expert_state 1", then a line `"scope" node type expert value` for each counter that is not
// 0. The scope is "main", the node the layer's number.
void write_counters(const std::string& path, const std::vector<double>& values, const ExpertBank& bank);

// Throws an Error unless write_counters() can write there.
void check_writable(const std::string& path);

// By key. The file's nodes, ordered by scope and number, are the layers, whatever their type: the counters that ONNX
// Runtime keeps of the same model's QMoE nodes will do. Throws an Error with path and line for anything else.
std::vector<double> read_counters(const std::string& path, const ExpertBank& bank);

// Keys with a count, the most used first.
std::vector<int64_t> most_used(const std::vector<double>& values);

}  // namespace onnx_moe
