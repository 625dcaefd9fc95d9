"""Counters end in a profile, and a profile in a session that starts with what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import onnx_moe
from onnx_moe.cache import engine
from onnx_moe.errors import InvalidInputError
from onnx_moe.routing import (
    MoERoutingProfiler,
    profile_counters,
    profile_recording,
    profile_trace,
    record,
    write_counter_file,
)
from onnx_moe.routing.report import advice, render_page
from tests.residency.model import Run, Stack, calls, run, save, session
from tests.routing.test_recording import hidden_states, options, routers

INPUTS = calls(seed=5)


def test_counters_are_the_profile_without_time_and_pairs() -> None:
    recordings = {}
    for mode in ("counters", "full"):
        made = onnx_moe.InferenceSession(routers(), options(trace=mode))
        with record(made) as recordings[mode]:
            made.run(None, {"x": hidden_states(70, 1)})
            for seed in range(30):
                made.run(None, {"x": hidden_states(1, seed)})
    found = profile_recording(recordings["counters"], name="routers", expert_bytes=7)
    whole = profile_recording(recordings["full"], name="routers")
    assert (found.facts, whole.facts) == ({"recorder": "counters"}, {"recorder": "full"})
    assert found.model.layer_names == whole.model.layer_names == ("second", "first")
    document, expected = found.document(), whole.document()
    for section in ("summary", "load_balance", "maps"):
        for key, value in expected[section].items():
            if key != "avg_overlap_lag1":
                assert document[section][key] == value, (section, key)
    assert document["balance"]["decode"]["per_layer"] == expected["balance"]["decode"]["per_layer"]
    assert document["recorded"]["tokens"] == {"prefill": 70, "decode": 30}
    stats = found.layers[0].expert_stats[int(np.argmax(found.counts.counts[:, 0].sum(0)))]
    same = whole.layers[0].expert_stats[stats.expert_id]
    assert stats.avg_probability == pytest.approx(same.avg_probability, rel=1e-12)
    assert np.isnan(stats.std_probability)
    assert stats.rank_distribution == {}
    assert document["cache"]["curves"] == []
    assert document["time"] == {"prefill": None, "decode": None}
    assert advice(document).startswith("Only counts are known")
    page = render_page(document)
    assert 'id="maps"' in page or 'id="experts"' in page
    assert 'id="cache"' not in page


def test_counters_add_up_with_a_trace() -> None:
    random = np.random.default_rng(0)
    profiler = MoERoutingProfiler(8, 2, top_k=3, name="x")
    made = onnx_moe.InferenceSession(routers(), options(trace="counters"))
    with record(made) as recording:
        made.run(None, {"x": hidden_states(9, 1)})
    counted = profile_counters(recording.layers)
    for layer in range(2):
        profiler.record_routing(layer, np.stack([random.permutation(8)[:3] for _ in range(5)]))
    other = profiler.profile()
    assert counted.counts.merge(other.counts)["tokens"].sum(0).tolist() == [14, 14]


def test_no_counters() -> None:
    with pytest.raises(InvalidInputError, match="a profile needs one layer at least"):
        profile_counters([])
    with pytest.raises(InvalidInputError, match="the profile holds no token"):
        write_counter_file(MoERoutingProfiler(8, 2).counts, "nowhere.txt")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(Stack(), tmp_path_factory.mktemp("stack"))


def test_a_session_starts_with_what_a_profile_says(stack: Path, tmp_path: Path) -> None:
    """The experts that the counter file has as most used are there before the first call, and pinned ones stay."""
    mapped = run(session(stack, residency="mapped", trace="full"), INPUTS)
    made = session(stack, residency="mapped", trace="full")
    with record(made) as recording:
        run(made, INPUTS)
    # This model has each router twice: in its block, and beside it for the ids.
    trace = recording.trace
    blocks = np.array([name.endswith(".block") for name in trace.layer_names])
    profile = profile_trace(trace.select(blocks[trace.layers]).called_layers_only())
    assert profile.model.num_layers == 3
    path = tmp_path / "new" / "counters.txt"
    write_counter_file(profile.counts, path)
    warm_session = session(stack, residency="pool", cache_bytes="60%", counters=path, pinned="5")
    warm = run(warm_session, INPUTS)
    cold: Run = run(session(stack, residency="pool", cache_bytes="60%"), INPUTS)
    assert warm.outputs == cold.outputs == mapped.outputs
    assert warm.statistics["warm_start_bytes"] > 0
    assert warm.statistics["pinned"] == 5
    assert warm.statistics["hits"] > cold.statistics["hits"]
    # What the session writes itself has the same form, and is on the same scale.
    engine(warm_session).save_counters(tmp_path / "own.txt")
    ours, own = (np.array([float(line.split()[-1]) for line in p.read_text().splitlines()[1:]])
                 for p in (path, tmp_path / "own.txt"))  # fmt: skip
    assert path.read_text().splitlines()[0] == (tmp_path / "own.txt").read_text().splitlines()[0]
    assert 0.2 < ours.sum() / own.sum() < 5


def test_sessions_without_options_record_nothing(tmp_path: Path) -> None:
    made = onnx_moe.InferenceSession(routers(), onnxruntime.SessionOptions())
    with pytest.raises(InvalidInputError, match="does not record routing"), record(made):
        pass


def test_a_counter_file_has_every_use(tmp_path: Path) -> None:
    """Uses a token, as they settle where each call fades those before by 0.95; expert 0 of each layer stands for it."""
    profiler = MoERoutingProfiler(5, 2, top_k=2)
    profiler.record_routing(0, [[1, 3], [1, 4], [3, 1], [1, 2]])
    profiler.record_routing(1, [[0, 3]])
    write_counter_file(profiler.counts, tmp_path / "counters.txt")
    header, *lines = (tmp_path / "counters.txt").read_text().splitlines()
    assert header == "moe_expert_state 1"
    found = {(int(layer), int(expert)): float(value) for _, layer, _, expert, value in map(str.split, lines)}
    assert {line.split()[0] + line.split()[2] for line in lines} == {'"main"MoEBlockFP4'}
    expected = {(0, 0): 0.0, (0, 1): 20.0, (0, 2): 5.0, (0, 3): 10.0, (0, 4): 5.0, (1, 0): 20.0, (1, 3): 20.0}
    assert found == pytest.approx(expected)
