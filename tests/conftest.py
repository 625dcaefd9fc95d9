"""What every test runs under."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# For `metal` and `bench`, which are not installed. Last, so that the installed onnx_moe is found before its sources.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# Two test processes share two cores: more threads than one each would only get into each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
