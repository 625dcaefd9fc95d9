"""The page as a file: nothing from outside, nothing that a profile's strings could break, small."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing import profile_trace, simulate_routing
from onnx_moe.routing.report import json_lines, render_page, write_report
from tests.routing_report.documents import CAPACITIES, EXPERTS, LAYERS, SHARES, small_document

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\u2028"


class Elements(HTMLParser):
    """Every element of a page: (tag, attributes); the text of scripts by id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.lasttag == "script":
            self.scripts.setdefault(self.elements[-1][1].get("id"), data)

    def having(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]


def profile_in(page: str) -> dict:
    return json.loads(Elements(page).scripts["profile"])


def test_the_page_holds_the_whole_document():
    assert profile_in(render_page(small_document())) == small_document()


def test_nothing_comes_from_outside():
    page = render_page(small_document())
    elements = Elements(page)
    assert not elements.having("src")
    assert all(target.startswith(("#", "data:,")) for target in elements.having("href"))
    assert "default-src 'none'" in page
    assert not re.search(r"@import|\burl\(|\bfetch\(|XMLHttpRequest|https?://(?!www\.w3\.org/2000/svg)", page)


def test_strings_of_a_profile_are_text_wherever_they_stand():
    document = small_document()
    document["model"]["name"] = document["recorded"]["source"] = HOSTILE
    document["model"]["layer_names"][0] = document["per_layer"][0]["name"] = HOSTILE
    document["predictors"]["scores"][0]["predictor"] = HOSTILE
    page = render_page(document)
    assert profile_in(page) == document
    tags = [tag for tag, _ in Elements(page).elements]
    assert tags.count("script") == 2
    assert "img" not in tags


def test_ids_are_unique_and_controls_have_labels():
    elements = Elements(render_page(small_document()))
    ids = elements.having("id")
    assert len(ids) == len(set(ids))
    labelled = set(elements.having("for"))
    controls = [attributes["id"] for tag, attributes in elements.elements if tag in ("select", "input")]
    assert len(controls) == 8
    assert set(controls) <= labelled
    anchors = {target[1:] for target in elements.having("href") if len(target) > 1 and target.startswith("#")}
    assert anchors <= set(ids)


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"cache": None}, "cache"),
        ({"predictors": None}, "predictors"),
        ({"concentration": {"prefill": None, "decode": None}}, "concentration"),
        ({"time": {"prefill": None, "decode": None}}, "time"),
        ({"balance": {"prefill": None, "decode": None}}, "balance"),
        ({"drift": {"prefill": None, "decode": None}}, "drift"),
    ],
)
def test_what_a_profile_does_not_know_is_left_out(change, gone):
    ids = Elements(render_page(small_document() | change)).having("id")
    assert gone not in ids
    assert "experts" in ids


def test_warnings_of_the_recording():
    document = small_document()
    assert "lacks" not in render_page(document)
    document["recorded"] |= {"dropped_calls": 12, "has_weights": False}
    page = render_page(document)
    assert "lacks 12 calls" in page
    assert "no gate weights" in page
    assert 'value="mass"' not in page


def test_a_large_profile_stays_small(tmp_path):
    """A real profile of 48 layers × 128 experts: what grows with the tokens is bounded (64 windows, 16 lags)."""
    trace = simulate_routing("qwen3-30b-a3b", 1100, seed=3)
    profile = profile_trace(trace, name="large", expert_bytes=2_500_000)
    document = profile.document()
    assert len(document["balance"]["decode"]["windows"]) > 32
    assert all(link and len(link["top"]) == 128 for link in document["transitions"]["per_layer"][1:])
    assert write_report(document, tmp_path / "large.html").stat().st_size < 1_500_000


def test_files_by_suffix(tmp_path):
    document = small_document()
    assert write_report(document, tmp_path / "new" / "report.html").read_text().startswith("<!doctype html>")
    assert json.loads(write_report(document, tmp_path / "report.json").read_text()) == document
    lines = write_report(document, tmp_path / "report.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(json_lines(document))


def test_the_page_opens_at_a_machines_budget_and_disk():
    def start(**machine: float) -> tuple[str | None, ...]:
        elements = Elements(render_page(small_document(), **machine)).elements
        values = {attributes.get("id"): attributes.get("value") for tag, attributes in elements if tag == "input"}
        return values["budget"], values["bandwidth"], values["computing"]

    assert start() == ("25", "2", "0")
    assert start(budget=12.3e6, bandwidth=0.7e9, compute_seconds=0.0125) == ("51", "0.7", "12.5")
    assert start(budget=1e12) == ("100", "2", "0")
    assert start(budget=1) == ("1", "2", "0")


def test_json_lines_hold_each_layer_and_each_point():
    records = list(json_lines(small_document()))
    kinds = [record["record"] for record in records]
    assert kinds == ["profile"] + ["layer"] * LAYERS + ["predictor"] * 6 + ["cache"] * 4 * len(CAPACITIES)
    assert [record["decode_share"] for record in records[1 : 1 + LAYERS]] == SHARES
    assert "prefill_share" not in records[1]
    assert len(records[1]["decode_mass"]) == EXPERTS
    assert records[-1] == {"record": "cache", "policy": "static", "capacity": 24, "bytes": 24_000_000, "hit_rate": 1.0}


def test_misuse_says_what_to_do(tmp_path):
    with pytest.raises(InvalidInputError, match=r"'report\.pdf': use a name that ends in \.html, \.json, \.jsonl"):
        write_report(small_document(), tmp_path / "report.pdf")
    with pytest.raises(InvalidInputError, match="version 1, but a report needs"):
        write_report(small_document() | {"version": 1}, tmp_path / "report.html")
    with pytest.raises(InvalidInputError, match="format None"):
        write_report({}, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_the_example_of_the_documentation(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[2] / "docs" / "routing-report.md"
    example = re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert example is not None
    monkeypatch.chdir(tmp_path)
    exec(compile(example[1], str(page), "exec"), {})
    written = Elements((tmp_path / "report.html").read_text())
    assert json.loads(written.scripts["profile"])["model"]["num_experts"] == 64
    assert capsys.readouterr().out.startswith("Keep ")
