#include "core/quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/error.h"
#include "core/lanes.h"

namespace onnx_moe {

namespace {

// Rows that the search for a global scale looks at. What there is to gain is 0.1 to 1 % of the squared error.
constexpr int64_t kSampledRows = 64;
constexpr int kGlobalCandidates = 8;

ONNX_MOE_WIDE void largest_magnitudes(const float* row, int64_t blocks, int64_t block_size, float* largest) {
  for (int64_t b = 0; b < blocks; ++b) {
    LaneWords most{};  // as bits, so that a NaN or an infinity comes out on top
    for (int64_t i = 0; i < block_size; i += kLanes) {
      Lanes values;
      load(row + b * block_size + i, values);
      absolute(values);
      const LaneWords words = (LaneWords)values;
      most = words > most ? words : most;
    }
    uint32_t part[kLanes];
    std::memcpy(part, &most, sizeof part);
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) part[i] = std::max(part[i], part[i + half]);
    }
    largest[b] = float_from_bits(part[0]);
  }
}

// The largest magnitude of `count` values, as bits: the order of bits is the order of values in every element type.
template <typename Word>
ONNX_MOE_INLINE Word largest_bits(const void* values, int64_t count) {
  constexpr Word kMagnitude = static_cast<Word>(~Word{0}) >> 1;
  const Word* words = static_cast<const Word*>(values);
  Word most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max<Word>(most, words[i] & kMagnitude);
  return most;
}

ONNX_MOE_WIDE uint32_t largest_bits_of(const void* values, int64_t count, size_t element_bytes) {
  return element_bytes == 2 ? largest_bits<uint16_t>(values, count) : largest_bits<uint32_t>(values, count);
}

float largest_of(const SourceMatrix& source, int64_t count) {
  const uint32_t bits = largest_bits_of(source.weights, count, element_size(source.type));
  if (source.type == ElementType::kFloat) return float_from_bits(bits);
  const auto word = static_cast<uint16_t>(bits);
  return source.type == ElementType::kFloat16 ? float_from_float16(word) : float_from_bfloat16(word);
}

// Codes of a row whose blocks are divided by their scales.
ONNX_MOE_WIDE void encode(const float* row, int64_t blocks, int64_t block_size, const float* inverses, uint8_t* codes) {
  typedef uint64_t Pairs __attribute__((vector_size(64)));
  typedef uint8_t Bytes __attribute__((vector_size(8)));
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t i = 0; i < block_size; i += kLanes) {
      Lanes values;
      load(row + b * block_size + i, values);
      const LaneWords signs = (LaneWords)values >> 31 << 3;
      absolute(values);
      values *= inverses[b];
      round_to_e2m1(values);
      LaneWords codes_of_values;
      e2m1_codes(values, codes_of_values);
      const Pairs pairs = (Pairs)(codes_of_values | signs);  // little-endian: the even column is the low half
      const Bytes bytes = __builtin_convertvector(pairs | pairs >> 28, Bytes);
      std::memcpy(codes + (b * block_size + i) / 2, &bytes, sizeof bytes);
    }
  }
}

void check_finite(const float* row, const std::vector<float>& largest, int64_t row_index, int64_t columns) {
  if (std::all_of(largest.begin(), largest.end(), [](float value) { return std::isfinite(value); })) return;
  for (int64_t i = 0; i < columns; ++i) {
    require(std::isfinite(row[i]), "weights hold ", row[i], " at row ", row_index, ", column ", i,
            ": only finite weights can be quantized");
  }
}

// A row at a time as floats, and what its blocks' scales depend on.
class RowReader {
 public:
  RowReader(const Kernel& kernel, const SourceMatrix& source, const Fp4Matrix& matrix)
      : kernel_(kernel),
        source_(source),
        columns_(matrix.columns),
        block_size_(matrix.format.block_size),
        row_(static_cast<size_t>(matrix.columns)),
        largest_(static_cast<size_t>(matrix.format.blocks(matrix.columns))) {
    if (source.importance == nullptr) ones_.assign(row_.size(), 1.0f);
    importance_ = source.importance == nullptr ? ones_.data() : source.importance;
  }

  void read(int64_t row) {
    kernel_.widen(source_.type, element_at(source_.type, source_.weights, row * columns_), columns_, row_.data());
    largest_magnitudes(row_.data(), blocks(), block_size_, largest_.data());
    check_finite(row_.data(), largest_, row, columns_);
  }

  int64_t blocks() const { return static_cast<int64_t>(largest_.size()); }
  const float* row() const { return row_.data(); }

  Block block(int64_t index) const {
    return {row_.data() + index * block_size_, importance_ + index * block_size_, largest_[static_cast<size_t>(index)]};
  }

 private:
  const Kernel& kernel_;
  const SourceMatrix& source_;
  int64_t columns_;
  int64_t block_size_;
  std::vector<float> row_;
  std::vector<float> largest_;
  std::vector<float> ones_;
  const float* importance_;
};

void check_columns(const Fp4Matrix& matrix) {
  require(matrix.columns % matrix.format.block_size == 0, "weights have ", matrix.columns,
          " columns, which is no multiple of the block of ", matrix.format.block_size, ": pad them with zeros");
}

// Errors of sampled rows under each global scale, in units of the maximum's square.
std::vector<double> sampled_errors(RowReader& reader, const Fp4Matrix& matrix, const std::vector<float>& candidates,
                                   float largest) {
  std::vector<ScaleChooser> choosers;
  for (const float candidate : candidates) choosers.emplace_back(matrix.format, ScaleRule::kMse, candidate);
  std::vector<double> errors(candidates.size(), 0.0);
  const int64_t samples = std::min(matrix.rows, kSampledRows);
  for (int64_t s = 0; s < samples; ++s) {
    reader.read(s * matrix.rows / samples);
    for (int64_t b = 0; b < reader.blocks(); ++b) {
      const Block block = reader.block(b);
      if (block.largest == 0.0f) continue;
      for (size_t c = 0; c < choosers.size(); ++c) {
        errors[c] += choosers[c].choose(block).error / largest / largest;
      }
    }
  }
  return errors;
}

}  // namespace

void quantize(const Kernel& kernel, const SourceMatrix& source, ScaleRule rule, const Fp4Matrix& matrix) {
  check_columns(matrix);
  require(std::isfinite(matrix.global_scale) && matrix.global_scale > 0.0f, "global_scale ", matrix.global_scale,
          " is not a positive number");
  const ScaleChooser chooser(matrix.format, rule, matrix.global_scale);
  RowReader reader(kernel, source, matrix);
  std::vector<float> inverses(static_cast<size_t>(reader.blocks()));
  for (int64_t r = 0; r < matrix.rows; ++r) {
    reader.read(r);
    for (int64_t b = 0; b < reader.blocks(); ++b) {
      const int code = chooser.choose(reader.block(b)).code;
      store_scale_code(matrix, r * reader.blocks() + b, code);
      inverses[static_cast<size_t>(b)] = chooser.inverse(code);
    }
    encode(reader.row(), reader.blocks(), matrix.format.block_size, inverses.data(),
           matrix.codes + r * matrix.columns / 2);
  }
}

float choose_global_scale(const Kernel& kernel, const SourceMatrix& source, ScaleRule rule, const Fp4Matrix& matrix) {
  if (matrix.format.format != Format::kNvfp4) return 1.0f;
  check_columns(matrix);
  const float largest = largest_of(source, matrix.rows * matrix.columns);
  RowReader reader(kernel, source, matrix);
  for (int64_t r = 0; r < matrix.rows && !std::isfinite(largest); ++r) reader.read(r);  // one of them is an error
  if (largest == 0.0f) return 1.0f;
  const float base = std::max(largest / (kE2M1Max * kE4M3Max), std::numeric_limits<float>::min());
  if (rule != ScaleRule::kMse) return base;
  std::vector<float> candidates;
  for (int i = 0; i < kGlobalCandidates; ++i) candidates.push_back(base * (1.0f + static_cast<float>(i) / 8.0f));
  const std::vector<double> errors = sampled_errors(reader, matrix, candidates, largest);
  return candidates[static_cast<size_t>(std::min_element(errors.begin(), errors.end()) - errors.begin())];
}

void dequantize(const Fp4Matrix& matrix, float* weights) {
  const int64_t block_size = matrix.format.block_size;
  const int64_t count = matrix.rows * matrix.columns;
  for (int64_t first = 0; first < count; first += block_size) {
    const float scale = load_scale(matrix.format.format, matrix.scales, first / block_size) * matrix.global_scale;
    for (int64_t i = first; i < first + block_size; ++i) weights[i] = load_code(matrix.codes, i) * scale;
  }
}

}  // namespace onnx_moe
