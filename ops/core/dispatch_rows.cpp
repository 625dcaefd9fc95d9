#include "core/dispatch_rows.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace onnx_moe {

namespace {

// Of a task: large enough to be worth a thread's start, small enough to share out evenly.
constexpr int64_t kTaskBytes = 1 << 20;
// Of a row, at a time: what eight slots of floats need of the first cache.
constexpr int64_t kColumns = 512;

void check_indices(const char* name, const int64_t* indices, int64_t count, int64_t rows) {
  for (int64_t i = 0; i < count; ++i) {
    require(indices[i] >= 0 && indices[i] < rows, name, " holds ", indices[i], " at ", i,
            ", but rows are numbered 0 to ", rows - 1);
  }
}

// body(first, last) for parts of [0, count), each of about kTaskBytes.
template <typename Body>
void for_parts(Host& host, int64_t count, int64_t bytes_each, const Body& body) {
  const int64_t size = std::max<int64_t>(1, kTaskBytes / std::max<int64_t>(1, bytes_each));
  parallel_for(host, (count + size - 1) / size,
               [&](int64_t part) { body(part * size, std::min(count, (part + 1) * size)); });
}

class TokenSums {
 public:
  TokenSums(const Kernel& kernel, const ScatterRows& call, Host& host)
      : kernel_(kernel), call_(call), rows_(host, call.slots * kColumns), sums_(host, kColumns) {}

  void sum(int64_t token) {
    for (int64_t first = 0; first < call_.columns; first += kColumns) {
      const int64_t columns = std::min(kColumns, call_.columns - first);
      for (int64_t slot = 0; slot < call_.slots; ++slot) {
        const int64_t row = call_.positions[token * call_.slots + slot];
        kernel_.widen(call_.type, element_at(call_.type, call_.y, row * call_.columns + first), columns,
                      rows_.data() + slot * columns);
      }
      kernel_.combine(call_.weights + token * call_.slots, rows_.data(), call_.slots, columns, sums_.data());
      kernel_.narrow(call_.type, sums_.data(), columns,
                     element_at(call_.type, call_.out, token * call_.columns + first));
    }
  }

 private:
  const Kernel& kernel_;
  const ScatterRows& call_;
  Scratch<float> rows_;  // [slots, columns at hand]
  Scratch<float> sums_;
};

}  // namespace

void gather_rows(const GatherRows& call, Host& host) {
  check_indices("indices", call.indices, call.count, call.rows);
  const auto bytes = static_cast<size_t>(call.row_bytes);
  for_parts(host, call.count, call.row_bytes, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      std::memcpy(static_cast<char*>(call.out) + i * call.row_bytes,
                  static_cast<const char*>(call.x) + call.indices[i] * call.row_bytes, bytes);
    }
  });
}

void scatter_rows(const Kernel& kernel, const ScatterRows& call, Host& host) {
  check_indices("positions", call.positions, call.tokens * call.slots, call.rows);
  const int64_t read_bytes = call.slots * call.columns * static_cast<int64_t>(element_size(call.type));
  for_parts(host, call.tokens, read_bytes, [&](int64_t first, int64_t last) {
    TokenSums sums(kernel, call, host);
    for (int64_t token = first; token < last; ++token) sums.sum(token);
  });
}

}  // namespace onnx_moe
