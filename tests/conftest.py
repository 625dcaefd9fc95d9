"""What every test runs under."""

from __future__ import annotations

import os

# Two test processes share two cores: more threads than one each would only get into each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
