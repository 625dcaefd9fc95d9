"""What has gone wrong in other expert caches, one test each."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx.external_data_helper import ExternalDataInfo

from onnx_moe.cache import engine
from tests.residency.model import Stack, calls, run, save, session
from tests.residency.test_traces import follow, save_follower
from tests.residency.traces import Routing, draw


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(Stack(), tmp_path_factory.mktemp("stack"))


@pytest.mark.parametrize("policy", ["lru", "decayed-lfu"])
def test_a_call_evicts_nothing_that_it_still_needs(stack: Path, policy: str) -> None:
    """Each call misses more experts than there are free slots, and a fresh one has the lowest score of all."""
    inputs = calls(seed=7, sizes=(3,) * 30)
    expected = run(session(stack, residency="mapped"), inputs)
    result = run(session(stack, residency="pool", cache_bytes="30%", cache_policy=policy), inputs)
    assert result.outputs == expected.outputs
    assert result.statistics["evictions"] > 100


def test_a_batch_that_needs_more_experts_than_slots_goes_in_waves(tmp_path: Path) -> None:
    path = save(Stack(layers=1), tmp_path)
    inputs = calls(seed=8, sizes=(1, 4, 6, 5, 8, 6, 4, 7))
    expected = run(session(path, residency="mapped"), inputs)
    result = run(session(path, residency="pool", cache_bytes="50%"), inputs)
    assert result.outputs == expected.outputs
    assert result.statistics["waves"] > 0


def test_chunks_of_a_prompt_and_sessions_after_each_other_share_nothing(stack: Path) -> None:
    inputs = calls(seed=9, sizes=(40, 40, 1, 40))
    expected = run(session(stack, residency="mapped"), inputs)
    for _ in range(3):
        assert run(session(stack, residency="pool", cache_bytes="40%"), inputs).outputs == expected.outputs


def anonymous_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def test_the_cache_is_used_and_its_budget_kept(tmp_path: Path) -> None:
    routing = Routing(layers=4, experts=64, top_k=4, tokens=150)
    path = save_follower(routing, tmp_path, rows=512, columns=512)
    ids = draw(routing)
    expected, _ = follow(path, ids, residency="mapped")
    before = anonymous_bytes()
    outputs, statistics = follow(path, ids, residency="pool", cache_bytes="25%", direct_io="on")
    grown = anonymous_bytes() - before
    assert outputs == expected
    assert statistics["hits"] > statistics["misses"] > 0
    uncached = statistics["lookups"] * statistics["expert_bytes"] // (4 * 64)
    assert statistics["bytes_read"] < uncached / 2
    overhead = 4 << 20
    assert statistics["budget_bytes"] + overhead < statistics["expert_bytes"]
    assert grown <= statistics["budget_bytes"] + overhead


def test_experts_beyond_4_gib_of_a_file(tmp_path: Path, stack: Path) -> None:
    offset = 5 << 30
    model = onnx.load(stack, load_external_data=False)
    for tensor in model.graph.initializer:
        moved = offset + (ExternalDataInfo(tensor).offset or 0)
        entry = next(entry for entry in tensor.external_data if entry.key == "offset")
        entry.value = str(moved)
    onnx.save(model, tmp_path / "stack.onnx")
    with open(tmp_path / "stack.data", "wb") as data:  # a hole and the tensors: it takes no room
        data.seek(offset)
        data.write(stack.with_name("stack.data").read_bytes())
    inputs = calls(seed=10)
    expected = run(session(stack, residency="mapped"), inputs)
    result = run(session(tmp_path / "stack.onnx", residency="pool", cache_bytes="40%"), inputs)
    assert result.outputs == expected.outputs
    assert result.statistics["mode"] == "pool"


def test_a_file_that_may_not_be_written_to(tmp_path: Path) -> None:
    path = save(Stack(), tmp_path)
    for file in tmp_path.iterdir():
        file.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        result = run(session(path, residency="pool", cache_bytes="40%"), calls(seed=11))
    finally:
        tmp_path.chmod(0o755)
    assert result.statistics["evictions"] > 0


def test_a_forked_process_ends_as_any_other(stack: Path) -> None:
    """The threads that read are not in the child: it must not wait for them."""
    pooled = session(stack, residency="pool", cache_bytes="50%", prefetch="repeat")
    run(pooled, calls(seed=12))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            del pooled
            status = 0
        finally:
            os._exit(status)
    killer = threading.Timer(30, os.kill, (child, 9))
    killer.start()
    _, status = os.waitpid(child, 0)
    killer.cancel()
    assert status == 0
    assert engine(pooled).statistics()["failed_loads"] == 0


def test_sessions_of_one_file_are_independent_while_both_run(tmp_path: Path) -> None:
    path = save(replace(Stack(), seed=3), tmp_path)
    inputs = calls(seed=13)
    expected = run(session(path, residency="mapped"), inputs)
    settings = [("lru", "30%"), ("decayed-lfu", "60%")]
    sessions = [session(path, residency="pool", cache_policy=policy, cache_bytes=budget) for policy, budget in settings]
    results: dict[int, list[bool]] = {0: [], 1: []}

    def work(index: int) -> None:
        results[index] += [run(sessions[index], inputs).outputs == expected.outputs for _ in range(5)]

    workers = [threading.Thread(target=work, args=(index,)) for index in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == {0: [True] * 5, 1: [True] * 5}
    capacities = [engine(each).statistics()["capacity"] for each in sessions]
    assert capacities[0] < capacities[1]
