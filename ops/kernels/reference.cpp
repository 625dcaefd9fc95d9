// The portable kernel: plain loops in double precision. It is what the others are compared with on machines where
// nothing else runs, and it runs anywhere.
#include <cmath>

#include "kernels/kernel.h"

namespace onnx_moe {

namespace {

bool supported() { return true; }

// Activations are multiplied as they are, whatever the precision asked for.
int64_t packed_bytes(const Operands&) { return 0; }
PackedForms forms(const Operands&, int64_t) { return 0; }
void pack(const Operands&, PackedForms, const float*, uint8_t*) {}

// Where the code of a column of a weight row lies, counted in codes, and where the scale of a block.
int64_t code_index(const Operands& operands, int64_t row, int64_t column) {
  if (operands.layout == WeightLayout::kRows) return row * operands.depth + column;
  const int64_t lane = row % kGroupRows;
  return (row - lane) * operands.depth + (column / 8 * kGroupRows + lane) * 8 + column % 8;
}

int64_t scale_index(const Operands& operands, int64_t row, int64_t block) {
  const int64_t blocks = operands.format.blocks(operands.depth);
  if (operands.layout == WeightLayout::kRows) return row * blocks + block;
  const int64_t lane = row % kGroupRows;
  return (row - lane) * blocks + block * kGroupRows + lane;
}

double dot_fp4(const Operands& operands, const Fp4Tile& tile, int64_t weight_row, const float* row) {
  const int64_t block_size = operands.format.block_size;
  const int64_t blocks = operands.format.blocks(operands.depth);
  double sum = 0.0;
  for (int64_t block = 0; block < blocks; ++block) {
    double block_sum = 0.0;
    for (int64_t i = block * block_size; i < (block + 1) * block_size; ++i) {
      block_sum +=
          static_cast<double>(load_code(tile.codes, code_index(operands, weight_row, i))) * static_cast<double>(row[i]);
    }
    const int64_t scale = scale_index(operands, weight_row, block);
    sum += block_sum * static_cast<double>(load_scale(operands.format.format, tile.scales, scale));
  }
  return sum;
}

void fp4_products(const Operands& operands, const Fp4Tile& tile, const Rows& rows, const Products& products) {
  for (int64_t r = 0; r < rows.count; ++r) {
    for (int band = 0; band < tile.bands; ++band) {
      for (int64_t c = 0; c < tile.columns; ++c) {
        const int64_t weight_row = tile.band[band].first + c * tile.band[band].step;
        products.data[r * products.stride + band * products.band_stride + c] =
            static_cast<float>(dot_fp4(operands, tile, weight_row, rows.values[r]));
      }
    }
  }
}

void plain_products(const PlainTile& tile, const float* const* rows, int64_t count, const Products& products) {
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t c = 0; c < tile.columns; ++c) {
      double sum = 0.0;
      for (int64_t i = 0; i < tile.depth; ++i) {
        sum += static_cast<double>(load_element(tile.type, tile.weights, (tile.first + c) * tile.depth + i)) *
               static_cast<double>(rows[r][i]);
      }
      products.data[r * products.stride + c] = static_cast<float>(sum);
    }
  }
}

double apply(Function function, double alpha, double g) {
  switch (function) {
    case Function::kNone:
      return g;
    case Function::kSilu:
      return g / (1.0 + std::exp(-alpha * g));
    case Function::kGelu:
      return 0.5 * g * (1.0 + std::erf(g / std::sqrt(2.0)));
    case Function::kGeluTanh:
      return 0.5 * g * (1.0 + std::tanh(0.79788456080286535588 * (g + 0.044715 * g * g * g)));
    case Function::kRelu:
      return g < 0.0 ? 0.0 : g;
    case Function::kRelu2:
      return g < 0.0 ? 0.0 : g * g;
  }
  return g;
}

// min and max that keep a NaN, unlike fmin and fmax.
double at_most(double value, double limit) { return value > limit ? limit : value; }
double at_least(double value, double limit) { return value < limit ? limit : value; }

void finish_row(const Epilogue& epilogue, int64_t row, float* y) {
  const Activation& activation = *epilogue.activation;
  const double limit = activation.limit;
  const float* gates = epilogue.products.data + row * epilogue.products.stride;
  const float* ups = gates + epilogue.products.band_stride;
  for (int64_t i = 0; i < epilogue.columns; ++i) {
    double gate = static_cast<double>(gates[i]) * epilogue.gate_scale;
    if (epilogue.gate_bias) gate += epilogue.gate_bias[i];
    if (!activation.gated) {
      y[i] = static_cast<float>(apply(activation.function, activation.alpha, gate));
      continue;
    }
    double up = static_cast<double>(ups[i]) * epilogue.up_scale;
    if (epilogue.up_bias) up += epilogue.up_bias[i];
    if (limit > 0.0) {
      gate = at_most(gate, limit);
      up = at_least(at_most(up, limit), -limit);
    }
    y[i] = static_cast<float>(apply(activation.function, activation.alpha, gate) * (up + activation.beta));
  }
}

void finish(const Epilogue& epilogue, int64_t rows, float* const* y) {
  for (int64_t row = 0; row < rows; ++row) finish_row(epilogue, row, y[row]);
}

void combine(const float* weights, const float* rows, int64_t slots, int64_t columns, float* y) {
  for (int64_t i = 0; i < columns; ++i) {
    float sum = 0.0f;
    for (int64_t slot = 0; slot < slots; ++slot) sum += weights[slot] * rows[slot * columns + i];
    y[i] = sum;
  }
}

void widen(ElementType type, const void* source, int64_t count, float* target) {
  for (int64_t i = 0; i < count; ++i) target[i] = load_element(type, source, i);
}

void narrow(ElementType type, const float* source, int64_t count, void* target) {
  for (int64_t i = 0; i < count; ++i) store_element(type, source[i], target, i);
}

}  // namespace

extern const Kernel kReferenceKernel;
constexpr Kernel kReferenceKernel = {"reference",     supported,      packed_bytes, forms,   pack,  fp4_products,
                                     kNarrowProducts, plain_products, finish,       combine, widen, narrow};

}  // namespace onnx_moe
