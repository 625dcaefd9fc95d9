"""How fast a model that writes text runs when its experts have a budget of memory: `onnx-moe bench residency`."""

from onnx_moe.residency_bench.measure import Measurement, Setting
from onnx_moe.residency_bench.model import TextModel, find_model
from onnx_moe.residency_bench.sweep import Report, Sweep, run_sweep

__all__ = ["Measurement", "Report", "Setting", "Sweep", "TextModel", "find_model", "run_sweep"]
