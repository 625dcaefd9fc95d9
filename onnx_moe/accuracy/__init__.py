"""Accuracy of an exported model: FP4 experts against the model that they were made from.

`measure` compares, `check` judges, `write_html` and `AccuracyReport.to_json` tell. In the terminal: onnx-moe accuracy.
"""

from onnx_moe.accuracy.golden import Golden, make_golden
from onnx_moe.accuracy.limits import Finding, Limits, check
from onnx_moe.accuracy.measure import Measurement, measure, measurement_for
from onnx_moe.accuracy.report import AccuracyReport

__all__ = [
    "AccuracyReport",
    "Finding",
    "Golden",
    "Limits",
    "Measurement",
    "check",
    "make_golden",
    "measure",
    "measurement_for",
]
