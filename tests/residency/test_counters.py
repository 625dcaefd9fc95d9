"""Files of counters: a session starts warm from what another one used, and pins the most used."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_moe.cache import engine
from onnx_moe.errors import OnnxMoeError
from tests.residency.model import Run, Stack, calls, run, save, session

INPUTS = calls(seed=5)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(Stack(), tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="module")
def mapped(stack: Path) -> Run:
    return run(session(stack, residency="mapped"), INPUTS)


@pytest.fixture(scope="module")
def counters(stack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a session wrote at its end."""
    path = tmp_path_factory.mktemp("counters") / "counters.txt"
    used = session(stack, residency="pool", cache_bytes="60%", save_counters=path)
    run(used, INPUTS)
    assert not path.exists()
    del used
    return path


def records(path: Path) -> dict[tuple[int, int], float]:
    header, *lines = path.read_text().splitlines()
    assert header == "moe_expert_state 1"
    fields = [line.split() for line in lines]
    assert {(scope, kind) for scope, _, kind, _, _ in fields} == {('"main"', "MoEBlockFP4")}
    return {(int(node), int(expert)): float(value) for _, node, _, expert, value in fields}


def test_a_file_holds_the_decayed_uses_of_each_expert(stack: Path, mapped: Run, counters: Path) -> None:
    expected = {(layer, 0): 0.0 for layer in range(3)}
    for call in mapped.ids:
        for layer, ids in enumerate(call):
            for key in expected:
                if key[0] == layer:
                    expected[key] *= 0.95
            for expert in {int(expert) for expert in ids.ravel()}:
                expected[layer, expert] = expected.get((layer, expert), 0.0) + 1
    assert records(counters) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("policy", ["lru", "decayed-lfu"])
@pytest.mark.parametrize("pinned", [None, "5", "50%"])
def test_a_warm_session_misses_less_and_computes_the_same(
    stack: Path, mapped: Run, counters: Path, policy: str, pinned: str | None
) -> None:
    cold = run(session(stack, residency="pool", cache_bytes="60%", cache_policy=policy), INPUTS)
    entries = {} if pinned is None else {"pinned": pinned}
    warm = run(
        session(stack, residency="pool", cache_bytes="60%", cache_policy=policy, counters=counters, **entries), INPUTS
    )
    assert warm.outputs == cold.outputs == mapped.outputs
    assert warm.statistics["hits"] > cold.statistics["hits"]
    expert_bytes = warm.statistics["expert_bytes"] // (3 * 16)
    assert warm.statistics["warm_start_bytes"] == expert_bytes * min(
        warm.statistics["capacity"], sum(value > 0 for value in records(counters).values())
    )
    assert warm.statistics["bytes_read"] == (
        warm.statistics["misses"] * expert_bytes + warm.statistics["warm_start_bytes"]
    )
    expected = {None: 0, "5": 5, "50%": warm.statistics["capacity"] // 2}
    assert warm.statistics["pinned"] == expected[pinned]


def test_what_a_file_counted_goes_on_counting(stack: Path, counters: Path, tmp_path: Path) -> None:
    warm = session(stack, residency="pool", cache_bytes="60%", counters=counters)
    engine(warm).save_counters(tmp_path / "again.txt")
    assert records(tmp_path / "again.txt") == records(counters)


def test_an_expert_that_was_used_much_stays(stack: Path, tmp_path: Path) -> None:
    """Not pinned: its counter outweighs what this session counts before its first use, which comes late."""
    inputs = calls(seed=6, sizes=(1,) * 60)
    chosen = [set(call[0].ravel().tolist()) for call in run(session(stack, residency="mapped"), inputs).ids]
    first_use = {expert: min(i for i, some in enumerate(chosen) if expert in some) for expert in set().union(*chosen)}
    late = max(first_use.values())
    assert late > 10
    used = "".join(f'"main" 0 QMoE {expert} 1000\n' for expert in chosen[late])
    path = tmp_path / "counters.txt"
    path.write_text(f'moe_expert_state 1\n{used}"main" 1 QMoE 0 0\n"main" 2 QMoE 0 0\n')
    warm = session(stack, residency="pool", cache_bytes="20%", counters=path)
    before = run(warm, inputs[:late]).statistics
    assert before["evictions"] > 0
    after = run(warm, inputs[late : late + 1]).statistics
    assert after["layers"][0]["misses"] == before["layers"][0]["misses"]


def test_pinned_experts_are_hits_to_the_end(stack: Path, counters: Path) -> None:
    hottest = max(records(counters), key=lambda key: records(counters)[key])
    pinned = session(stack, residency="pool", cache_bytes="30%", cache_policy="lru", counters=counters, pinned="1")
    result = run(pinned, calls(seed=6, sizes=(1,) * 60))
    misses = [layer["misses"] for layer in result.statistics["layers"]]
    layer, expert = hottest
    # Without the pinned expert's calls the counts of its layer's misses are those of a layer that never had it.
    uses = sum(expert in call[layer] for call in result.ids)
    assert uses > 0
    assert misses[layer] <= sum(len(set(call[layer].ravel())) for call in result.ids) - uses


def test_counters_can_be_saved_while_the_session_runs(stack: Path, counters: Path, tmp_path: Path) -> None:
    used = session(stack, residency="pool", cache_bytes="60%")
    run(used, INPUTS)
    engine(used).save_counters(tmp_path / "now.txt")
    assert (tmp_path / "now.txt").read_text() == counters.read_text()
    with pytest.raises(OnnxMoeError, match="cannot write the expert counters to /nowhere/file"):
        engine(used).save_counters("/nowhere/file")


def test_counters_that_onnx_runtime_kept_of_other_nodes_will_do(stack: Path, mapped: Run, tmp_path: Path) -> None:
    path = tmp_path / "counters.txt"
    path.write_text('moe_expert_state 1\n"main" 7 QMoE 3 2.5\n"main" 19 QMoE 0 12\n"main" 30 QMoE 15 1e-3\n')
    result = run(session(stack, residency="pool", cache_bytes="60%", counters=path), INPUTS)
    assert result.outputs == mapped.outputs
    assert result.statistics["warm_start_bytes"] == 3 * result.statistics["expert_bytes"] // (3 * 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("moe_expert_state 2\n", "holds no expert counters: its first line is not 'moe_expert_state 1'"),
        ('moe_expert_state 1\n"main" 0 QMoE 16 1\n', "line 2 is .* with an expert below 16"),
        ('moe_expert_state 1\n"main" 0 QMoE 1 nan\n', "line 2 is"),
        ('moe_expert_state 1\n"main" 0 QMoE 1 -1\n', "line 2 is"),
        ('moe_expert_state 1\n"main" 0 QMoE 1 1 1\n', "line 2 is"),
        ('moe_expert_state 1\n"main" 0 QMoE 1 1\n\n', "line 3 is ''"),
        ('moe_expert_state 1\n"main" 0 QMoE 1 1\n"main" 0 QMoE 1 1\n', "line 3 is .* had a counter before"),
        ('moe_expert_state 1\n"main" 0 QMoE 1 1\n', "holds the counters of 1 nodes, but the model has 3"),
    ],
)
def test_other_files_are_refused_with_the_line(stack: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "counters.txt"
    path.write_text(text)
    with pytest.raises(Exception, match=message):
        run(session(stack, residency="pool", cache_bytes="60%", counters=path), INPUTS)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"counters": "/nowhere/file"}, "cannot open /nowhere/file, which is to hold expert counters"),
        ({"save_counters": "/nowhere/file"}, "cannot write expert counters to /nowhere/file"),
        ({"pinned": "5"}, "onnx_moe.pinned is '5', but does nothing without onnx_moe.counters"),
        ({"counters": "/nowhere/file", "pinned": "101%"}, "onnx_moe.pinned is '101%': use a number of experts"),
        ({"counters": "/nowhere/file", "residency": "mapped"}, "does nothing when onnx_moe.residency is mapped"),
    ],
)
def test_entries_that_are_wrong_or_do_nothing_are_refused(stack: Path, entries: dict[str, str], message: str) -> None:
    entries = {"residency": "pool", **entries}
    if entries["residency"] == "pool":
        entries["cache_bytes"] = "60%"
    with pytest.raises(Exception, match=message):
        run(session(stack, **entries), INPUTS)
