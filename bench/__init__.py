"""Benchmarks against peers: python -m bench.moe, in the repository, with the `dev` extra installed."""

import sys
from pathlib import Path

# `python -m` puts the current folder first, where the source of onnx_moe would hide the installed, compiled package.
_ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]
