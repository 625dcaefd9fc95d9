"""Benchmarks against peers: python -m bench.moe, in the repository, with the `dev` extra installed."""

import os
import sys
from pathlib import Path

# Torch's threads, too, are to leave the cores to the next implementation when a run ends.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# `python -m` puts the current folder first, where the source of onnx_moe would hide the installed, compiled package.
_ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]
