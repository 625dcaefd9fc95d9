"""Reports of a routing profile: one HTML page that needs nothing else, JSON, or JSON lines.

Everything starts from the profile's JSON document, which docs/routing.md describes.
"""

from __future__ import annotations

from onnx_moe.routing.report.advice import advice
from onnx_moe.routing.report.page import render_page
from onnx_moe.routing.report.writing import json_lines, write_report

__all__ = ["advice", "json_lines", "render_page", "write_report"]
