"""Reading experts ahead changes no byte and no decision of the cache, is counted, and ends where it does not pay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_moe.cache import engine
from onnx_moe.routing import CacheSetup, simulate_cache
from tests.residency.model import HIDDEN, Run, Stack, calls, run, save, session, trace_of

SIGNALS = ["repeat", "history", "recency", "cross-layer", "next-gate"]
#: A prefill, and tokens that change little from one to the next.
SIZES = (9, *[1] * 60, 3, *[1] * 20)


def tokens(seed: int) -> list[NDArray[np.float32]]:
    hidden = calls(seed, SIZES)
    for index in range(1, len(hidden)):
        if len(hidden[index]) == len(hidden[index - 1]) == 1:
            hidden[index] = (0.8 * hidden[index - 1] + 0.6 * hidden[index]).astype(np.float32)
    return hidden


INPUTS = tokens(seed=4)


@pytest.fixture(scope="module", params=["fused", "unfused"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    of = Stack(layers=4, fused=request.param == "fused", next_gates=True)
    return save(of, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def mapped(stack: Path) -> Run:
    return run(session(stack, residency="mapped"), INPUTS)


@pytest.fixture(scope="module", params=["plain", "gate_bias", "grouped"])
def foreseeable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose next gate sees exactly what the next router will see, however that chooses."""
    of = Stack(layers=4, next_gates=True, same_input=True, choice=request.param)
    return save(of, tmp_path_factory.mktemp(request.param))


def speculating(
    path: Path, signal: str, budget: str = "45%", inputs: list[NDArray[np.float32]] = INPUTS, **entries: object
) -> Run:
    entries = {"prefetch_precision": 0, **entries}
    return run(session(path, residency="pool", cache_bytes=budget, prefetch=signal, **entries), inputs)


def assert_reconciles(statistics: dict[str, Any]) -> None:
    ahead = statistics["prefetch"]
    judged = ahead["timely"] + ahead["late"] + ahead["wasted"] + ahead["cancelled"]
    assert 0 <= ahead["issued"] - judged <= ahead["slots"]
    demanded = speculative = 0
    for layer in statistics["layers"]:
        of = layer["prefetch"]
        demanded += (layer["misses"] - of["timely"] - of["late"]) * layer["expert_bytes"]
        speculative += (of["issued"] - of["cancelled"]) * layer["expert_bytes"]
    assert statistics["joined"] == 0
    assert ahead["bytes_read"] == speculative
    assert statistics["bytes_read"] == demanded + speculative
    assert ahead["correct"] <= min(ahead["predicted"], ahead["used"])
    for counter in ("predicted", "correct", "used", "issued", "timely", "late", "wasted", "cancelled"):
        assert sum(layer["prefetch"][counter] for layer in statistics["layers"]) == ahead[counter]


@pytest.mark.parametrize("budget", ["35%", "60%"])
@pytest.mark.parametrize("signal", SIGNALS)
def test_every_signal_gives_the_same_bytes_and_is_counted(stack: Path, mapped: Run, signal: str, budget: str) -> None:
    result = speculating(stack, signal, budget)
    assert result.outputs == mapped.outputs
    assert result.statistics["prefetch"]["predicted"] > 0
    assert_reconciles(result.statistics)


@pytest.mark.parametrize("signal", ["cross-layer", "next-gate"])
@pytest.mark.parametrize("policy", ["lru", "decayed-lfu"])
def test_reading_ahead_changes_no_decision_of_the_cache(foreseeable: Path, signal: str, policy: str) -> None:
    result = speculating(foreseeable, signal, cache_policy=policy)
    live = result.statistics
    assert live["prefetch"]["issued"] > 0
    setup = CacheSetup(live["capacity"], policy, layer_floor=live["layer_floor"], share=live["share"])
    replayed = simulate_cache(trace_of(result), setup)
    assert (live["hits"], live["misses"], live["evictions"], live["bypassed"]) == (
        replayed.hits,
        replayed.misses,
        replayed.evictions,
        replayed.bypassed,
    )


def test_the_gate_on_what_its_router_will_see_misses_nothing(foreseeable: Path) -> None:
    statistics = speculating(foreseeable, "next-gate").statistics
    first, *others = statistics["layers"]
    assert first["prefetch"]["predicted"] == 0  # nothing comes before it
    for layer in others:
        assert layer["prefetch"]["correct"] == layer["prefetch"]["used"] > 0
    ahead = statistics["prefetch"]
    assert ahead["timely"] + ahead["late"] > 0.3 * statistics["misses"]
    assert_reconciles(statistics)


def test_reading_ahead_begins_when_it_would_have_paid(foreseeable: Path) -> None:
    # Of four predicted experts a token uses the first two: those are read, once the first candidates have shown it.
    single = [hidden for hidden in INPUTS if len(hidden) == 1]
    statistics = speculating(foreseeable, "next-gate", inputs=single, prefetch_precision=0.8).statistics
    ahead = statistics["prefetch"]
    assert [layer["prefetch"]["on"] for layer in statistics["layers"]] == [False, True, True, True]
    assert 0 < ahead["issued"] < ahead["useful"] < ahead["candidates"]
    assert ahead["timely"] + ahead["late"] == ahead["issued"]
    assert_reconciles(statistics)


def test_what_was_read_ahead_can_leave_again(foreseeable: Path) -> None:
    """No lease is left behind: with a lower budget everybody beyond it goes."""
    ahead = session(foreseeable, residency="pool", cache_bytes="60%", prefetch="next-gate", prefetch_precision=0)
    before = run(ahead, INPUTS).statistics
    assert before["prefetch"]["timely"] > 0
    engine(ahead).set_budget(before["cycle_bytes"])
    after = engine(ahead).statistics()
    assert after["resident"] <= after["capacity"] < before["capacity"]


def test_what_all_layers_showed_begins_reads_in_each(tmp_path: Path) -> None:
    """A layer of a deep model has judged a few candidates when the model has judged hundreds."""
    path = save(Stack(layers=24, next_gates=True, same_input=True), tmp_path)
    result = run(
        session(path, residency="pool", cache_bytes="30%", prefetch="next-gate", prefetch_precision=0.8),
        tokens(seed=14)[1:7],
    )
    layers = [layer["prefetch"] for layer in result.statistics["layers"]]
    assert max(layer["candidates"] for layer in layers) < 32
    assert sum(layer["issued"] > 0 for layer in layers) > 20


def test_reading_ahead_stays_off_where_it_does_not_pay(stack: Path, mapped: Run) -> None:
    result = speculating(stack, "history", prefetch_precision=1)
    ahead = result.statistics["prefetch"]
    assert ahead["candidates"] > 0
    assert ahead["issued"] == ahead["bytes_read"] == ahead["layers_on"] == 0
    assert result.outputs == mapped.outputs


def test_where_every_expert_has_a_slot_nothing_is_read_ahead(stack: Path) -> None:
    ahead = speculating(stack, "repeat", budget="100%").statistics["prefetch"]
    assert ahead["slots"] == ahead["issued"] == 0


def test_a_budget_has_room_for_what_is_read_ahead(stack: Path) -> None:
    plain = run(session(stack, residency="pool", cache_bytes="45%"), INPUTS[:1]).statistics
    needed = speculating(stack, "repeat").statistics["cycle_bytes"]
    assert needed == plain["cycle_bytes"] + 2 * plain["slot_bytes"]
    with pytest.raises(Exception, match=f"set onnx_moe.cache_bytes to at least {needed} "):
        speculating(stack, "repeat", budget=str(needed - 1))
    speculating(stack, "repeat", budget=str(needed))


def test_next_gate_wants_a_model_that_has_them(tmp_path: Path) -> None:
    path = save(Stack(), tmp_path)
    with pytest.raises(Exception, match="no router of the model has the input next_gate_weight: export it with"):
        speculating(path, "next-gate")


def test_hidden_states_of_another_size_are_refused(tmp_path: Path) -> None:
    path = save(Stack(next_gates=True), tmp_path)
    with pytest.raises(Exception, match=f"Got: {HIDDEN + 1} Expected: {HIDDEN}"):
        session(path).run(None, {"layer0.in": np.ones((1, HIDDEN + 1), np.float32)})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"prefetch": "psychic"}, "onnx_moe.prefetch is 'psychic': use one of off, repeat, history, recency"),
        ({"prefetch": "repeat", "prefetch_precision": "1.5"}, "prefetch_precision is '1.5': use a number from 0 to 1"),
        ({"prefetch_precision": "0.5"}, "does nothing without onnx_moe.prefetch"),
        ({"prefetch": "repeat", "residency": "mapped"}, "does nothing when onnx_moe.residency is mapped"),
    ],
)
def test_entries_that_are_wrong_or_do_nothing_are_refused(stack: Path, entries: dict[str, str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        session(stack, **entries)
