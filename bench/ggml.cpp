// One MoE block in ggml (llama.cpp's library), for bench/ggml.py: gate, up and down in MXFP4 by ggml_mul_mat_id.
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace {

struct Free {
  void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
};
template <typename T>
using Owned = std::unique_ptr<std::remove_pointer_t<T>, Free>;

Owned<ggml_context*> make_context() { return Owned<ggml_context*>(ggml_init({size_t{16} << 20, nullptr, true})); }

// The buffer type that rearranges weights for the CPU's instructions, as llama.cpp uses it; the plain one otherwise.
ggml_backend_buffer_type_t weight_buffer_type(ggml_backend_t backend) {
  ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
  void* address = ggml_backend_reg_get_proc_address(registry, "ggml_backend_dev_get_extra_bufts");
  if (address) {
    const auto extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(address);
    ggml_backend_buffer_type_t* types = extra(ggml_backend_get_device(backend));
    for (; types && *types; ++types) {
      if (std::strstr(ggml_backend_buft_name(*types), "REPACK")) return *types;
    }
  }
  return ggml_backend_cpu_buffer_type();
}

// The graph of a number of tokens.
struct Graph {
  Owned<ggml_context*> context;
  Owned<ggml_backend_buffer_t> buffer;
  ggml_tensor* x;
  ggml_tensor* expert_ids;
  ggml_tensor* expert_weights;
  ggml_tensor* y;
  ggml_cgraph* graph;
};

class Block {
 public:
  Block(int64_t num_experts, int64_t top_k, int64_t hidden_size, int64_t intermediate_size, int threads)
      : top_k_(top_k), hidden_size_(hidden_size), backend_(ggml_backend_cpu_init()), context_(make_context()) {
    ggml_backend_cpu_set_n_threads(backend_.get(), threads);
    const auto matrix = [&](int64_t rows, int64_t columns) {
      return ggml_new_tensor_3d(context_.get(), GGML_TYPE_MXFP4, columns, rows, num_experts);
    };
    gate_ = matrix(intermediate_size, hidden_size);
    up_ = matrix(intermediate_size, hidden_size);
    down_ = matrix(hidden_size, intermediate_size);
    weights_.reset(ggml_backend_alloc_ctx_tensors_from_buft(context_.get(), weight_buffer_type(backend_.get())));
    for (ggml_tensor* tensor : {gate_, up_, down_}) fill(tensor);
  }

  void run(int64_t tokens, const float* x, const int32_t* expert_ids, const float* expert_weights, float* y) {
    Graph& graph = graph_of(tokens);
    const auto set = [](ggml_tensor* tensor, const void* data) {
      ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
    };
    set(graph.x, x);
    set(graph.expert_ids, expert_ids);
    set(graph.expert_weights, expert_weights);
    ggml_backend_graph_compute(backend_.get(), graph.graph);
    ggml_backend_tensor_get(graph.y, y, 0, ggml_nbytes(graph.y));
  }

 private:
  // Random weights, the same for every expert: only their places matter here.
  static void fill(ggml_tensor* tensor) {
    std::mt19937 random(0);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    std::vector<float> values(static_cast<size_t>(tensor->ne[0] * tensor->ne[1]));
    for (float& value : values) value = normal(random);
    std::vector<char> bytes(ggml_nbytes(tensor));
    const size_t expert_bytes = bytes.size() / static_cast<size_t>(tensor->ne[2]);
    ggml_quantize_chunk(tensor->type, values.data(), bytes.data(), 0, tensor->ne[1], tensor->ne[0], nullptr);
    for (size_t at = expert_bytes; at < bytes.size(); at += expert_bytes) {
      std::memcpy(bytes.data() + at, bytes.data(), expert_bytes);
    }
    ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
  }

  Graph& graph_of(int64_t tokens) {
    const auto found = graphs_.find(tokens);
    if (found != graphs_.end()) return found->second;
    Graph made{make_context(), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
    ggml_context* context = made.context.get();
    made.x = ggml_new_tensor_3d(context, GGML_TYPE_F32, hidden_size_, 1, tokens);
    made.expert_ids = ggml_new_tensor_2d(context, GGML_TYPE_I32, top_k_, tokens);
    made.expert_weights = ggml_new_tensor_3d(context, GGML_TYPE_F32, 1, top_k_, tokens);
    ggml_tensor* hidden = ggml_swiglu_split(context, ggml_mul_mat_id(context, gate_, made.x, made.expert_ids),
                                            ggml_mul_mat_id(context, up_, made.x, made.expert_ids));
    ggml_tensor* slots =
        ggml_mul(context, ggml_mul_mat_id(context, down_, hidden, made.expert_ids), made.expert_weights);
    for (int64_t slot = 0; slot < top_k_; ++slot) {
      const size_t offset = static_cast<size_t>(slot) * slots->nb[1];
      ggml_tensor* part = ggml_view_2d(context, slots, hidden_size_, tokens, slots->nb[2], offset);
      made.y = made.y ? ggml_add(context, made.y, part) : part;
    }
    if (top_k_ == 1) made.y = ggml_cont(context, made.y);
    made.graph = ggml_new_graph(context);
    ggml_build_forward_expand(made.graph, made.y);
    made.buffer.reset(ggml_backend_alloc_ctx_tensors(context, backend_.get()));
    return graphs_.emplace(tokens, std::move(made)).first->second;
  }

  int64_t top_k_;
  int64_t hidden_size_;
  Owned<ggml_backend_t> backend_;
  Owned<ggml_context*> context_;
  Owned<ggml_backend_buffer_t> weights_;
  ggml_tensor* gate_;
  ggml_tensor* up_;
  ggml_tensor* down_;
  std::map<int64_t, Graph> graphs_;
};

}  // namespace

extern "C" {

void* bench_ggml_make(int64_t num_experts, int64_t top_k, int64_t hidden_size, int64_t intermediate_size, int threads) {
  return new Block(num_experts, top_k, hidden_size, intermediate_size, threads);
}

void bench_ggml_run(void* block, int64_t tokens, const float* x, const int32_t* expert_ids, const float* expert_weights,
                    float* y) {
  static_cast<Block*>(block)->run(tokens, x, expert_ids, expert_weights, y);
}
}
