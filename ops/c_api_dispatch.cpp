// The C API of rows to the experts and back.
#include "c_api_guard.h"
#include "c_api_types.h"
#include "core/dispatch_rows.h"
#include "core/error.h"
#include "core/threaded_host.h"
#include "kernels/registry.h"
#include "onnx_moe.h"

using onnx_moe::guarded;
using onnx_moe::require;

int onnx_moe_gather_rows(const onnx_moe_gather* args) {
  return guarded([&] {
    require(args->threads >= 1, "threads is ", args->threads, ": use at least 1");
    onnx_moe::ThreadedHost host(args->threads);
    onnx_moe::gather_rows({args->x, args->rows, args->row_bytes, args->indices, args->count, args->out}, host);
  });
}

int onnx_moe_scatter_rows(const onnx_moe_scatter* args) {
  return guarded([&] {
    require(args->threads >= 1, "threads is ", args->threads, ": use at least 1");
    require(args->slots >= 1, "slots is ", args->slots, ": a token has at least 1");
    onnx_moe::ThreadedHost host(args->threads);
    const onnx_moe::ScatterRows call{onnx_moe::element_type(args->type),
                                     args->y,
                                     args->rows,
                                     args->columns,
                                     args->positions,
                                     args->weights,
                                     args->tokens,
                                     args->slots,
                                     args->out};
    onnx_moe::scatter_rows(onnx_moe::current_kernel(), call, host);
  });
}
