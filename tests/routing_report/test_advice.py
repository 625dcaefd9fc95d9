"""The paragraph of advice says what the figures say, and changes its mind when they do."""

from __future__ import annotations

import pytest

from onnx_moe.routing.report import advice
from tests.routing_report.documents import curve, small_document


@pytest.fixture
def document() -> dict:
    return small_document()


def test_memory_for_each_target(document):
    text = advice(document)
    assert text.startswith(
        "Keep 18.0 MB (75 % of the experts) in memory, and 90 % of lookups find their expert there with decayed LFU;"
    )
    assert "80 % need 12.0 MB and 95 % need 21.0 MB." in text


def test_memory_is_counted_in_experts_where_their_size_is_unknown(document):
    document["cache"]["expert_bytes"] = None
    text = advice(document)
    assert text.startswith("Keep 18 experts (75 % of all) in memory")
    assert "80 % need 12 experts" in text
    assert "MB" not in text


def test_the_highest_reachable_target_is_advised(document):
    document["cache"]["targets"] = [
        {**one, "capacity": one["capacity"] if one["hit_rate"] < 0.9 else None} for one in document["cache"]["targets"]
    ]
    assert "and 80 % of lookups find their expert there with decayed LFU." in advice(document)


def test_no_reachable_target(document):
    document["cache"]["targets"] = [{**one, "capacity": None} for one in document["cache"]["targets"]]
    document["cache"]["curves"][1] = curve("decayed-lfu", [0.1, 0.2, 0.3, 0.4, 0.64])
    assert "No budget brings hits to 80 % on this run: the most is 64 %" in advice(document)


def test_the_token_cycle_is_the_floor(document):
    assert "Never give less than 7.00 MB (29 % of the experts)" in advice(document)


def test_the_better_policy(document):
    assert "Decayed LFU beats LRU by up to 10 points, with 12.0 MB; from 18.0 MB on they are alike." in advice(document)
    document["cache"]["curves"][:2] = [
        curve("lru", [0, 0.5, 0.8, 0.9, 0.99]),
        curve("decayed-lfu", [0, 0.4, 0.7, 0.9, 0.99]),
    ]
    assert "LRU beats decayed LFU by up to 10 points, with 12.0 MB; from 18.0 MB on they are alike." in advice(document)


def test_policies_that_are_alike(document):
    document["cache"]["curves"][1] = curve("decayed-lfu", [0.2, 0.31, 0.69, 0.9, 0.99])
    text = advice(document)
    assert "within two points of each other at every budget" in text
    assert "beats" not in text


def test_pinning(document):
    assert "Do not pin what the start of a run uses most" in advice(document)
    assert "with the same memory that reaches 75 % where decayed LFU reaches 91 %." in advice(document)
    document["cache"]["curves"][3] = curve("static", [0.2, 0.5, 0.8, 0.92, 1.0])
    assert "does as well (92 %): a saved profile is worth loading." in advice(document)


def test_reading_ahead(document):
    assert "From history alone the best predictor, cross-layer, finds 50 % of the next experts" in advice(document)
    assert "too few to read ahead for" in advice(document)
    assert "gate, which finds more in trained models, is not in this recording" in advice(document)
    for score in document["predictors"]["scores"]:
        if score["predictor"] == "popularity":
            score["recall"] = 0.81
    assert "the best predictor, popularity, finds 81 %" in advice(document)
    assert "reading ahead is worth a try" in advice(document)
    for score in document["predictors"]["scores"]:
        if score["predictor"] == "random":
            score["recall"] = 0.95  # of few experts, chance finds many: nobody can follow it
    assert "the best predictor, popularity, finds 81 %" in advice(document)


def test_experts_to_remove(document):
    assert "1 expert in 1 layer never served a token although at least ten uses were to be expected" in advice(document)
    document["per_layer"][0]["dead_experts"] = 0
    assert "1 expert was never chosen, but so few tokens prove nothing: remove none." in advice(document)
    document["per_layer"][2]["unseen_experts"] = 2
    assert "3 experts were never chosen" in advice(document)
    for layer in document["per_layer"]:
        layer["unseen_experts"] = 0
    assert "Every expert was chosen: there is none to remove." in advice(document)


def test_doubts(document):
    assert "first guess" not in advice(document)
    document["recorded"] |= {"source": "simulated, seed 1", "dropped_calls": 3}
    document["recorded"]["tokens"]["decode"] = 64
    assert advice(document).endswith(
        "Take this as a first guess: the routing is simulated, not recorded; the recording lacks 3 calls; "
        "the run has 64 decode tokens only."
    )


def test_a_long_run_is_trusted_however_short_its_replay(document):
    """The kept stretch of a large model is short; what matters are the whole run's first uses."""
    document["cache"]["simulated_tokens"] = 64
    assert "first guess" not in advice(document)
    document["cache"]["whole_run"]["decode"]["first_uses"] = 1200
    assert "10 % of the run’s lookups are first uses of an expert, which no cache has." in advice(document)


def test_what_a_profile_notes_is_said(document):
    document["recorded"]["notes"] = ["Caches are replayed on 12 of up to 1,200 sequences."]
    assert advice(document).endswith("Take this as a first guess: caches are replayed on 12 of up to 1,200 sequences.")
    document["cache"]["curves"] = []
    assert advice(document).startswith("Caches are replayed on 12 of up to 1,200 sequences.")


def test_a_profile_without_a_replay_still_gets_advice(document):
    document["cache"] = document["predictors"] = None
    assert advice(document).startswith("Only counts are known, which say nothing about caches")
    assert "1 expert in 1 layer never served a token" in advice(document)
