#include "runtime/self_test.h"

#include <cmath>
#include <sstream>

#include "core/threaded_host.h"
#include "kernels/registry.h"
#include "plan/plan.h"

namespace onnx_moe::metal {

namespace {

constexpr int64_t kExperts = 8;
constexpr int64_t kTopK = 2;
constexpr int64_t kHidden = 96;
constexpr int64_t kIntermediate = 64;

// One block: its tokens choose the regime (2 of 8 experts each), its projections' formats differ.
struct Case {
  const char* regime;
  int64_t tokens;
  Format gate_up;
  Format down;
};

constexpr Case kCases[] = {{"decode", 1, Format::kMxfp4, Format::kNvfp4},
                           {"few rows", 5, Format::kNvfp4, Format::kFp4},
                           {"grouped", 40, Format::kFp4, Format::kMxfp4}};

// Relative to the norm of the CPU's output. What the operators promise against exact values, for each of the two
// projections and on both sides: sums in a shorter type (TF32 has an error of some 5e-4) are beyond it in float.
double allowed(ElementType type) {
  return type == ElementType::kFloat ? 4e-6 : type == ElementType::kFloat16 ? 4e-3 : 3e-2;
}

// The same numbers on every machine (Knuth's multiplier for 64 bits).
class Random {
 public:
  uint32_t below(uint32_t bound) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 33) % bound;
  }
  // In steps of 1/64 from -1 to 1: exact in every element type.
  float value() { return static_cast<float>(below(129)) / 64.0f - 1.0f; }

 private:
  uint64_t state_ = 1;
};

struct Elements {
  ElementType type;
  std::vector<char> memory;

  Elements(ElementType element_type, int64_t count)
      : type(element_type), memory(static_cast<size_t>(count) * element_size(element_type), '\xFF') {}
  int64_t count() const { return static_cast<int64_t>(memory.size() / element_size(type)); }
  float at(int64_t i) const { return load_element(type, memory.data(), i); }
};

Elements draw_elements(Random& random, ElementType type, int64_t count) {
  Elements elements(type, count);
  for (int64_t i = 0; i < count; ++i) store_element(type, random.value(), elements.memory.data(), i);
  return elements;
}

struct Projection {
  BlockFormat format;
  int64_t rows;
  int64_t columns;
  std::vector<uint8_t> codes;
  std::vector<uint8_t> scales;
  Elements bias;

  Projection(Random& random, Format fp4, int64_t row_count, int64_t column_count)
      : format(make_block_format(fp4, fp4 == Format::kFp4 ? 32 : 0)),
        rows(row_count),
        columns(column_count),
        codes(static_cast<size_t>(kExperts * rows * columns / 2)),
        scales(static_cast<size_t>(kExperts * rows * format.blocks(columns) * format.scale_bytes())),
        bias(draw_elements(random, ElementType::kFloat, kExperts * rows)) {
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random.below(256));
    // From 1/16 to 1/2: exponents of E8M0; signs, exponents and mantissas of E4M3; the upper bytes of float16.
    const int64_t step = format.scale_bytes();
    for (size_t i = 0; i < scales.size(); ++i) {
      const bool upper = static_cast<int64_t>(i) % step == step - 1;
      if (fp4 == Format::kMxfp4) scales[i] = static_cast<uint8_t>(123 + random.below(4));
      if (fp4 == Format::kNvfp4) scales[i] = static_cast<uint8_t>(0x18 + random.below(0x18) + 0x80 * random.below(2));
      if (fp4 == Format::kFp4) scales[i] = static_cast<uint8_t>(upper ? 0x2C + random.below(12) : random.below(256));
    }
  }

  ExpertWeights weights() const {
    return {format, WeightLayout::kRows, kExperts,          rows, columns, codes.data(), scales.data(), nullptr,
            1,      ElementType::kFloat, bias.memory.data()};
  }

  void add_to(std::vector<ConstantMemory>& constants) const {
    constants.push_back({codes.data(), static_cast<int64_t>(codes.size())});
    constants.push_back({scales.data(), static_cast<int64_t>(scales.size())});
    constants.push_back({bias.memory.data(), static_cast<int64_t>(bias.memory.size())});
  }
};

// Of the norms of difference and reference; NaN where the device computes NaN.
double relative_difference(const Elements& actual, const Elements& expected) {
  double difference = 0.0;
  double norm = 0.0;
  for (int64_t i = 0; i < expected.count(); ++i) {
    const double reference = expected.at(i);
    difference += (actual.at(i) - reference) * (actual.at(i) - reference);
    norm += reference * reference;
  }
  return std::sqrt(difference / norm);
}

double difference_in(Accelerator& device, ElementType type, const Case& test) {
  Random random;
  const Elements hidden = draw_elements(random, type, test.tokens * kHidden);
  const Elements gate = draw_elements(random, type, kExperts * kHidden);
  const Projection gate_up(random, test.gate_up, 2 * kIntermediate, kHidden);
  const Projection down(random, test.down, kHidden, kIntermediate);
  RouterAttributes router;
  router.top_k = kTopK;
  router.normalize = true;
  const Activation activation{Function::kSilu, true};
  const MoeBlock block{router, activation, Precision{}, gate_up.weights(), down.weights()};
  const RouterInput routing{
      type,    type,    type,    test.tokens, kHidden, kExperts, hidden.memory.data(), gate.memory.data(),
      nullptr, nullptr, nullptr, nullptr,     nullptr};
  Elements expected(type, test.tokens * kHidden);
  ThreadedHost host;
  moe_block(current_kernel(), block, routing, nullptr, expected.memory.data(), host);
  std::vector<ConstantMemory> constants;
  gate_up.add_to(constants);
  down.add_to(constants);
  Elements actual(type, test.tokens * kHidden);
  device.moe_block(block, routing, actual.memory.data(), *device.adopt(constants));
  return relative_difference(actual, expected);
}

}  // namespace

std::string self_test(Accelerator& device, ElementType type) {
  for (const Case& test : kCases) {
    try {
      const double difference = difference_in(device, type, test);
      if (difference <= allowed(type)) continue;
      std::ostringstream message;
      message << "a block of " << test.tokens << " tokens (" << test.regime << ", " << format_name(test.gate_up)
              << " and " << format_name(test.down) << ") differs from the CPU's by " << difference
              << " of its norm, where " << allowed(type) << " is rounding";
      return message.str();
    } catch (const Error& error) {
      return error.what();
    }
  }
  return "";
}

}  // namespace onnx_moe::metal
