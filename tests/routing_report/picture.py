"""Makes the picture of docs/routing-report.md: `python -m tests.routing_report.picture`, with Chromium."""

from __future__ import annotations

import tempfile
from pathlib import Path

from onnx_moe.routing import known_model, profile_trace, simulate_routing
from onnx_moe.routing.report import write_report
from tests.routing_report.browser import chromium

TARGET = Path(__file__).parents[2] / "docs" / "routing-report.png"


def main() -> None:
    """The page of a simulated GLM-4.7-Flash, from its top to the end of the heat map."""
    model = known_model("glm-4.7-flash")
    trace = simulate_routing(model, 3000, prompt_tokens=32, request_tokens=256, seed=42)
    profile = profile_trace(
        trace, name="GLM-4.7-Flash", expert_bytes=model.expert_bytes("mxfp4"), source="simulated, seed 42"
    )
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder) / "browser") as page:
        page.open(write_report(profile.document(), Path(folder) / "report.html"))
        height = page.evaluate("document.querySelector('#expert-table').getBoundingClientRect().bottom + scrollY + 30")
        TARGET.write_bytes(page.screenshot(round(height)))


if __name__ == "__main__":
    main()
