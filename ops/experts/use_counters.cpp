#include "experts/use_counters.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <limits>
#include <locale>
#include <map>
#include <sstream>
#include <utility>

#include "core/error.h"

namespace onnx_moe {

namespace {

constexpr const char* kHeader = "moe_expert_state 1";
constexpr const char* kUnfinished = ".part";
constexpr const char* kScope = "main";
constexpr const char* kNodeType = "MoEBlockFP4";

struct Record {
  std::string scope;
  int64_t node = 0;
  std::string type;
  int64_t expert = 0;
  double value = 0;
};

// Nothing left over, and nothing that is no number.
bool parse(const std::string& line, Record& record) {
  std::istringstream fields(line);
  fields.imbue(std::locale::classic());
  std::string value;
  std::string rest;
  fields >> std::quoted(record.scope) >> record.node >> record.type >> record.expert >> value;
  if (!fields || fields >> rest) return false;
  char* end = nullptr;
  record.value = std::strtod(value.c_str(), &end);
  return *end == '\0' && std::isfinite(record.value) && record.value >= 0 && record.node >= 0 && record.expert >= 0;
}

}  // namespace

UseCounters::UseCounters(const ExpertBank& bank, double decay)
    : bank_(bank), decay_(decay), visits_(static_cast<size_t>(bank.layers)), uses_(static_cast<size_t>(bank.size())) {
  require(decay > 0 && decay <= 1, "decay is ", decay, ": it must lie in (0, 1], such as 0.95");
  constexpr int kPowers = 1024;
  powers_.reserve(kPowers);
  for (int i = 0; i < kPowers; ++i) powers_.push_back(std::pow(decay, i));
}

// A power depends on its exponent alone, so that equal histories give equal bits at any time and in any layer.
double UseCounters::power(int64_t exponent) const {
  const auto index = static_cast<size_t>(exponent);
  return index < powers_.size() ? powers_[index] : std::pow(decay_, static_cast<double>(exponent));
}

int64_t UseCounters::age(int64_t key) const {
  return visits_[static_cast<size_t>(bank_.layer_of(key))] - uses_[static_cast<size_t>(key)].visit;
}

void UseCounters::use(int64_t key) {
  const int64_t since = age(key);
  Use& use = uses_[static_cast<size_t>(key)];
  use.frequency = use.frequency * power(since) + 1;
  use.visit += since;
}

void UseCounters::set(int64_t key, double value) {
  uses_[static_cast<size_t>(key)] = {value, visits_[static_cast<size_t>(bank_.layer_of(key))]};
}

double UseCounters::value(int64_t key) const { return uses_[static_cast<size_t>(key)].frequency * power(age(key)); }

bool UseCounters::less(int64_t a, int64_t b) const {
  // Only the difference of ages enters: within a layer it stays the same however many visits pass.
  const int64_t older = age(a) - age(b);
  const double of_a = uses_[static_cast<size_t>(a)].frequency;
  const double of_b = uses_[static_cast<size_t>(b)].frequency;
  return older >= 0 ? of_a * power(older) < of_b : of_a < of_b * power(-older);
}

void check_writable(const std::string& path) {
  const std::string unfinished = path + kUnfinished;
  require(std::ofstream(unfinished).is_open(), "cannot write expert counters to ", path, ": ", std::strerror(errno));
  std::remove(unfinished.c_str());
}

void write_counters(const std::string& path, const std::vector<double>& values, const ExpertBank& bank) {
  // Whoever reads the file meanwhile, or after a crash, finds the old one or the new one.
  const std::string unfinished = path + kUnfinished;
  std::ofstream file(unfinished);
  file.imbue(std::locale::classic());
  file << kHeader << '\n' << std::setprecision(std::numeric_limits<double>::max_digits10);
  for (int64_t layer = 0; layer < bank.layers; ++layer) {
    for (int64_t expert = 0; expert < bank.experts; ++expert) {
      const double value = values[static_cast<size_t>(bank.key(layer, expert))];
      // Each layer's expert 0, so that the file's nodes are all layers.
      if (value == 0 && expert > 0) continue;
      file << std::quoted(kScope) << ' ' << layer << ' ' << kNodeType << ' ' << expert << ' ' << value << '\n';
    }
  }
  file.close();
  require(file.good() && std::rename(unfinished.c_str(), path.c_str()) == 0, "cannot write the expert counters to ",
          path, ": ", std::strerror(errno));
}

std::vector<double> read_counters(const std::string& path, const ExpertBank& bank) {
  std::ifstream file(path);
  std::string line;
  require(file.is_open(), "cannot open ", path, ", which is to hold expert counters: ", std::strerror(errno));
  require(std::getline(file, line) && line == kHeader, path, " holds no expert counters: its first line is not '",
          kHeader, "'");
  std::map<std::pair<std::string, int64_t>, std::vector<double>> nodes;
  for (int64_t number = 2; std::getline(file, line); ++number) {
    Record record;
    require(parse(line, record) && record.expert < bank.experts, path, " line ", number, " is '", line,
            "', but must be \"scope\" node type expert value, with an expert below ", bank.experts,
            " and a value of at least 0");
    std::vector<double>& of_node = nodes[{record.scope, record.node}];
    of_node.resize(static_cast<size_t>(bank.experts), -1);
    double& counter = of_node[static_cast<size_t>(record.expert)];
    require(counter < 0, path, " line ", number, " is '", line, "', whose expert had a counter before");
    counter = record.value;
  }
  require(static_cast<int64_t>(nodes.size()) == bank.layers, path, " holds the counters of ", nodes.size(),
          " nodes, but the model has ", bank.layers, ": use a file that was saved with this model");
  std::vector<double> values;
  for (const auto& [node, counters] : nodes) values.insert(values.end(), counters.begin(), counters.end());
  for (double& value : values) value = std::max(value, 0.0);
  return values;
}

std::vector<int64_t> most_used(const std::vector<double>& values) {
  std::vector<int64_t> keys;
  for (size_t key = 0; key < values.size(); ++key) {
    if (values[key] > 0) keys.push_back(static_cast<int64_t>(key));
  }
  std::stable_sort(keys.begin(), keys.end(), [&](int64_t a, int64_t b) {
    return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
  });
  return keys;
}

}  // namespace onnx_moe
