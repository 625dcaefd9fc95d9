"""docs/models.md is what the recorded results say, and they say what is promised."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from tools.model_table.architectures import ARCHITECTURES
from tools.model_table.comparison import TOLERANCE, Comparison
from tools.model_table.page import PAGE, write_page
from tools.model_table.results import Result, load_results

PROMISED = [
    "glm4_moe_lite",
    "glm4_moe",
    "qwen3_moe",
    "qwen3_next",
    "mixtral",
    "olmoe",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "minimax_m2",
    "ernie4_5_moe",
    "granitemoe",
    "lfm2_moe",
    "nemotron_h",
]


def test_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == write_page(load_results()), "run python -m tools.model_table"


def test_what_is_promised() -> None:
    results = load_results()
    assert [name for name in PROMISED if not results[name].passed] == []
    assert sum(result.passed for result in results.values()) >= 40
    assert len({tuple(sorted(result.versions.items())) for result in results.values()}) == 1


def test_every_decorated_architecture_is_in_the_table() -> None:
    """Folders of transformers whose experts have the hook, against the table's model types."""
    models = Path(transformers.__file__).parent / "models"
    decorated = {
        file.parent.name
        for file in models.glob("*/modeling_*.py")
        if "@use_experts_implementation" in file.read_text(encoding="utf-8")
    }
    known = {name.removesuffix("_text") for name in ARCHITECTURES}
    assert decorated - known == set()


def comparison(**differences: float) -> Comparison:
    given = {"prefill": 1e-7, "padded": 1e-7, "decode": 1e-7, **differences}
    return Comparison(["softmax"], 2, 100, 6, ["key", "value"], **given)


@pytest.mark.parametrize("bad", [2 * TOLERANCE, math.nan, math.inf])
@pytest.mark.parametrize("which", ["prefill", "padded", "decode"])
def test_a_difference_or_a_nan_does_not_pass(which: str, bad: float) -> None:
    good = Result({}, 1.0, comparison())
    assert good.passed
    assert not replace(good, comparison=comparison(**{which: bad})).passed
    assert not Result({}, 1.0, None, "it fails").passed


def test_failures_are_listed() -> None:
    versions = {"transformers": "1", "torch": "2", "onnxruntime": "3"}
    page = write_page({"mixtral": Result(versions, 1.0, comparison()), "olmoe": Result(versions, 1.0, None, "no luck")})
    table, _, failures = page.partition("## What does not export")
    assert "| Mixtral | mixtral | softmax | 100 | 6 | key, value | 1.0e-07 |" in table
    assert "| OLMoE | olmoe | no luck |" in failures
    assert "OLMoE" not in table
