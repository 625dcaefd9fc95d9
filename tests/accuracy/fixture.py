"""The trained model that ships, exported once for all tests of a process."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import onnx_moe
from onnx_moe.accuracy import Measurement
from onnx_moe.accuracy.reference import ReferenceModel

FOLDER = Path(str(files("onnx_moe") / "data" / "tiny-glm"))
GOLDEN = Path(__file__).with_name("golden.json")

#: Enough to see an effect of FP4 and every defect; the figures of docs/accuracy.md are taken over more.
QUICK = Measurement(text_windows=12, text_tokens=256)


@cache
def reference() -> ReferenceModel:
    return ReferenceModel(FOLDER, fold_shared_experts=True)


def export(path: Path, **options: object) -> Path:
    onnx_moe.export(reference().module, None, path, **options)  # type: ignore[arg-type]
    return path
