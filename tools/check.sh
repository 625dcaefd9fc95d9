#!/usr/bin/env bash
# Style and types: ruff, mypy, clang-format. Run from anywhere, in an environment with onnx-moe's `dev` extra.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

ruff check .
ruff format --check .
git ls-files -z 'ops/*.h' 'ops/*.cpp' 'metal/*.cpp' 'metal/runtime/*.h' 'metal/plan/*.h' 'metal/simulator/*.h' 'metal/kernels/arguments.h' 'tests/*.cpp' | xargs -0 clang-format --dry-run --Werror

# The sources lie in two folders that an install joins; mypy sees them joined.
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
cp -r onnx_moe "$stage/onnx_moe"
cp -r export "$stage/onnx_moe/export"
(cd "$stage" && mypy --config-file "$root/pyproject.toml" -p onnx_moe)
mypy --explicit-package-bases -p metal.simulator -m metal.runtime.embed_kernels -p tools.cross_macos \
  -p tools.metal_on_cuda -m tools.check_metal_api -m tools.fetch_metal_cpp
