// Runs products of MoEExpertGemmFP4 from a file, for tests of a library that was built for another machine:
// arm64_driver CASES OUTPUT. A case is 13 int32 numbers and eight buffers, each with its size in front (int64).
#include <onnx_moe.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

namespace {

template <typename T>
T read(std::ifstream& file) {
  T value{};
  file.read(reinterpret_cast<char*>(&value), sizeof value);
  return value;
}

std::vector<char> read_buffer(std::ifstream& file) {
  std::vector<char> buffer(static_cast<size_t>(read<int64_t>(file)));
  file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
  return buffer;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::ifstream cases(argv[1], std::ios::binary);
  std::ofstream output(argv[2], std::ios::binary);
  std::printf("kernel %s\n", onnx_moe_current_kernel());
  while (cases.peek() != std::ifstream::traits_type::eof()) {
    int32_t numbers[14];
    for (int32_t& number : numbers) number = read<int32_t>(cases);
    std::vector<char> buffers[8];
    for (auto& buffer : buffers) buffer = read_buffer(cases);
    onnx_moe_expert_gemm_args args{};
    args.type = args.bias_type = numbers[0];
    args.tokens = numbers[1];
    args.slots = numbers[2];
    args.num_experts = numbers[3];
    args.rows = numbers[4];
    args.columns = numbers[5];
    args.x_per_slot = numbers[6];
    args.format = numbers[7];
    args.block_size = numbers[8];
    args.gated = numbers[9];
    args.interleaved = numbers[10];
    args.global_scales = args.gated ? 2 : 1;
    args.activation = !numbers[11] ? "none" : args.gated ? "silu" : "gelu_tanh";
    args.alpha = 1.0f;
    args.accuracy_level = numbers[12];
    args.weight_layout = numbers[13];
    args.x = buffers[0].data();
    args.expert_ids = reinterpret_cast<const int32_t*>(buffers[1].data());
    args.weights = reinterpret_cast<const uint8_t*>(buffers[2].data());
    args.scales = buffers[3].data();
    args.global_scale = reinterpret_cast<const float*>(buffers[4].data());
    args.bias = buffers[5].data();
    args.expert_weights = buffers[6].empty() ? nullptr : reinterpret_cast<const float*>(buffers[6].data());
    args.y = buffers[7].data();
    if (onnx_moe_expert_gemm(&args)) {
      std::fprintf(stderr, "%s\n", onnx_moe_last_error());
      return 1;
    }
    output.write(buffers[7].data(), static_cast<std::streamsize>(buffers[7].size()));
  }
}
