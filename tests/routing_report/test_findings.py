"""The sentences under the headings and the key figures say what the document holds."""

from __future__ import annotations

import pytest

from onnx_moe.routing.report import findings
from onnx_moe.routing.report.numbers import byte_size, percent
from tests.routing_report.documents import small_document

SENTENCES = {
    "cache": (
        "With 6.00 MB (25 % of the experts) in memory, decayed LFU 50 % and LRU 30 % of lookups hit, against "
        "70 % for a cache that knew the future. Less than 7.00 MB (29 % of the experts), what one token uses "
        "in all layers and a slot to read into, is refused by the plugin. Of more, a sixteenth, at most eight "
        "slots, is for experts that pass the cache by, as it is here."
    ),
    "experts": (
        "The busiest is expert 0 of layer 0, with 50 % of its layer’s selections, 4.0 times an even share. 1 "
        "of 24 experts were never chosen."
    ),
    "concentration": (
        "The most chosen quarter of the experts takes 61 % of decode selections; chosen by the first half of "
        "the run, it takes 52 % of the second."
    ),
    "layers": (
        "Entropy runs from 0.70 (layer 0, the least even) to 1.00 (layer 1); 1 is even. On average 8 of 8 "
        "experts are in use in a layer."
    ),
    "time": (
        "A decode token chooses 50 % of the experts that the token before chose, and 20 % of those 16 tokens "
        "back; popularity alone would give 28 %. 1.0 of a token’s 2 experts in a layer were not the last token’s. "
        "In the middle layer, half of all reuses come within 3 tokens."
    ),
    "relations": (
        "Layer 1 tells most about the next: 0.75 bits about what layer 2 chooses. Experts 2 and 5 of layer 2 "
        "serve the same token 3.2 times as often as chance would have it."
    ),
    "predictors": ("With 2 guesses a layer, cross-layer finds 50 % of a token’s experts; popularity alone finds 40 %."),
    "balance": (
        "Over all decode tokens the value is 1.70 on average (1 is balanced). Furthest from balance is layer "
        "0 in window 2, with 3.50."
    ),
}


@pytest.mark.parametrize("section", SENTENCES)
def test_finding(section):
    assert getattr(findings, section)(small_document()) == SENTENCES[section]


def test_the_whole_run():
    document = small_document()
    text = "Over all 12,000 decode lookups of the run, plain LRU with 6.00 MB (25 % of the experts) hits 20 %."
    assert findings.whole_run(document) == text
    document["cache"]["whole_run"]["decode"] = None
    assert findings.whole_run(document) is None


def test_key_figures():
    assert findings.key_figures(small_document()) == [
        ("50 %", "hits with a quarter of the experts in memory (decayed LFU)"),
        ("18.0 MB", "memory for 90 % hits, of 24.0 MB in all"),
        ("6.00 MB", "token cycle: what one token uses in all layers"),
        ("42 %", "of a token’s experts served the token before it"),
        ("1.60", "load-balancing value, mean of layers (1 is even)"),
        ("0.85", "entropy of the load, mean of layers (1 is even)"),
    ]


def test_findings_without_held_out_tokens_or_pairs():
    document = small_document()
    document["concentration"]["decode"]["all"]["held_out"] = None
    document["cooccurrence"]["strongest_pairs"] = []
    assert findings.concentration(document).endswith("takes 61 % of decode selections.")
    assert findings.relations(document).endswith("about what layer 2 chooses.")


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (0.000001, "< 0.001 %"),
        (0.0004, "0.04 %"),
        (0.042, "4.2 %"),
        (0.42, "42 %"),
        (0.994, "99 %"),
        (0.9951, "99.5 %"),
        (0.99996, "> 99.9 %"),
        (1, "100 %"),
    ],
)
def test_percent(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999 B"), (1000, "1.00 kB"), (999_600, "1.00 MB"), (48.94e9, "48.9 GB"), (512e12, "512 TB")],
)
def test_byte_size(count, text):
    assert byte_size(count) == text
