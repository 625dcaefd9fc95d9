"""Sessions whose experts are read into a cache compute the same bytes as those that have them mapped."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import onnxruntime
import pytest

import onnx_moe
from onnx_moe.cache import engine
from onnx_moe.errors import InvalidInputError, OnnxMoeError
from onnx_moe.routing import CacheSetup, simulate_cache
from tests.residency.model import Run, Stack, calls, run, save, session, trace_of

INPUTS = calls(seed=1)
#: One token's cycle, and the slot of an expert that bypasses the cache: see the refusal below.
CYCLE = 3 * 2 + 1


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(Stack(), tmp_path_factory.mktemp("fused"))


@pytest.fixture(scope="module")
def unfused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(Stack(fused=False), tmp_path_factory.mktemp("unfused"))


@pytest.fixture(scope="module")
def mapped(fused: Path) -> Run:
    return run(session(fused, residency="mapped"), INPUTS)


def slot_bytes(path: Path) -> int:
    return int(run(session(path, residency="pool", cache_bytes="100%"), INPUTS[:1]).statistics["slot_bytes"])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("direct_io", ["on", "off"])
@pytest.mark.parametrize("policy", ["lru", "decayed-lfu"])
@pytest.mark.parametrize("budget", ["cycle", "25%", "50%", "75%", "100%"])
def test_every_budget_policy_and_way_to_read_gives_the_same_bytes(
    fused: Path, mapped: Run, budget: str, policy: str, direct_io: str, threads: int
) -> None:
    cache_bytes = CYCLE * slot_bytes(fused) if budget == "cycle" else budget
    pooled = session(
        fused,
        threads,
        residency="pool",
        cache_bytes=cache_bytes,
        cache_policy=policy,
        direct_io=direct_io,
        io_threads=threads,
    )
    result = run(pooled, INPUTS)
    assert result.statistics["mode"] == "pool"
    assert result.outputs == mapped.outputs
    assert result.statistics["resident"] <= result.statistics["capacity"]
    assert (result.statistics["evictions"] > 0) == (budget != "100%")


@pytest.mark.parametrize("residency", ["auto", "pagecache"])
def test_modes_that_leave_experts_where_they_are_give_the_same_bytes(fused: Path, mapped: Run, residency: str) -> None:
    result = run(session(fused, residency=residency), INPUTS)
    assert result.outputs == mapped.outputs
    assert result.statistics["mode"] == ("mapped" if residency == "auto" else "pagecache")
    assert result.statistics["lookups"] == 0


def test_projections_in_nodes_of_their_own_give_the_same_bytes(unfused: Path, mapped: Run) -> None:
    result = run(session(unfused, residency="pool", cache_bytes="40%"), INPUTS)
    assert result.outputs == mapped.outputs
    assert len(result.statistics["layers"]) == 6
    assert result.statistics["evictions"] > 0


@pytest.mark.parametrize("policy", ["lru", "decayed-lfu"])
@pytest.mark.parametrize("budget", ["18%", "30%", "50%", "80%", "100%"])
def test_counters_are_the_simulators(fused: Path, policy: str, budget: str) -> None:
    inputs = calls(seed=2, sizes=(9, *[1] * 40, 3, *[1] * 20))
    result = run(session(fused, residency="pool", cache_bytes=budget, cache_policy=policy), inputs)
    live = result.statistics
    setup = CacheSetup(
        live["capacity"],
        policy,
        layer_floor=live["layer_floor"],
        share=None if live["share"] < 0 else live["share"],
    )
    replayed = simulate_cache(trace_of(result), setup)
    assert (live["hits"], live["misses"], live["evictions"], live["bypassed"]) == (
        replayed.hits,
        replayed.misses,
        replayed.evictions,
        replayed.bypassed,
    )
    assert live["misses"] > 0


def test_statistics_reconcile(fused: Path) -> None:
    statistics = run(session(fused, residency="pool", cache_bytes="40%"), INPUTS).statistics
    assert statistics["hits"] + statistics["misses"] == statistics["lookups"]
    assert statistics["calls"] == len(INPUTS) * 3
    expert_bytes = statistics["expert_bytes"] // (3 * 16)
    assert statistics["bytes_read"] == statistics["misses"] * expert_bytes
    for counter in ("hits", "misses", "resident"):
        assert sum(layer[counter] for layer in statistics["layers"]) == statistics[counter]
    assert [layer["node"] for layer in statistics["layers"]] == ["layer0.block", "layer1.block", "layer2.block"]
    assert statistics["stall_ns"] > 0
    assert statistics["failed_loads"] == statistics["waves"] == 0


def test_a_large_call_leaves_the_experts_of_others_alone(fused: Path) -> None:
    pooled = session(fused, residency="pool", cache_bytes="50%")
    statistics = run(pooled, calls(seed=3, sizes=(64,))).statistics
    assert statistics["bypassed"] > 0
    # Every layer keeps its share: the first layers' experts are still there after the last one's call.
    assert all(layer["resident"] == statistics["share"] for layer in statistics["layers"])


def test_a_budget_below_a_tokens_cycle_is_refused_with_what_is_needed(fused: Path, mapped: Run) -> None:
    needed = CYCLE * slot_bytes(fused)
    with pytest.raises(Exception, match=f"uses 6 experts .* set onnx_moe.cache_bytes to at least {needed} "):
        run(session(fused, residency="pool", cache_bytes=needed - 1), INPUTS)
    assert run(session(fused, residency="pool", cache_bytes=needed), INPUTS).outputs == mapped.outputs


def test_automatic_residency_reads_what_does_not_fit_and_says_why(fused: Path, mapped: Run) -> None:
    result = run(session(fused, cache_bytes="300KiB"), INPUTS)
    assert result.statistics["mode"] == "pool"
    assert "do not fit into onnx_moe.cache_bytes" in result.statistics["reason"]
    assert result.outputs == mapped.outputs
    fitting = run(session(fused, cache_bytes="1GiB"), INPUTS).statistics
    assert fitting["mode"] == "mapped"
    assert fitting["unused"] == "onnx_moe.cache_bytes"
    assert result.statistics["unused"] == ""
    assert "fit into onnx_moe.cache_bytes" in fitting["reason"]


@pytest.mark.parametrize(
    ("entries", "severity", "line"),
    [
        ({"cache_bytes": "300KiB"}, 1, "expert residency is pool: the experts' "),
        ({"cache_bytes": "1GiB"}, 2, "; onnx_moe.cache_bytes does nothing here"),
        ({}, 1, "expert residency is mapped: the experts' "),
        ({"residency": "pagecache"}, 1, "expert residency is pagecache: onnx_moe.residency asks for it"),
    ],
)
def test_the_log_tells_the_mode_once(
    fused: Path, capfd: pytest.CaptureFixture[str], entries: dict[str, str], severity: int, line: str
) -> None:
    logged = {}
    for least in (severity, severity + 1):
        run(session(fused, log_severity=least, **entries), INPUTS[:3])
        logged[least] = capfd.readouterr().err.count(line)
    assert logged == {severity: 1, severity + 1: 0}


def test_the_budget_can_change_while_runs_are_under_way(fused: Path, mapped: Run) -> None:
    pooled = session(fused, residency="pool", cache_bytes="100%")
    live = engine(pooled)
    budgets = ["20%", "100%", "35%", "60%"]
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for budget in budgets:
                live.set_budget(budget)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(20):
            assert run(pooled, INPUTS).outputs == mapped.outputs
    finally:
        stop.set()
        changer.join()
    live.set_budget("20%")
    statistics = live.statistics()
    assert statistics["resident"] <= statistics["capacity"]
    assert statistics["capacity"] < 16
    with pytest.raises(OnnxMoeError, match="cache_bytes to at least"):
        live.set_budget(1)


@pytest.mark.parametrize("budget", ["25%", "40%"])
def test_a_budget_that_was_set_divides_the_cache_as_the_entry_does(fused: Path, budget: str) -> None:
    inputs = calls(seed=16, sizes=(9, *[1] * 60, 3, *[1] * 20))
    entered = session(fused, residency="pool", cache_bytes=budget, cache_policy="lru")
    changed = session(fused, residency="pool", cache_bytes="90%", cache_policy="lru")
    engine(changed).set_budget(budget)
    expected, found = (run(each, inputs).statistics for each in (entered, changed))
    for counter in ("capacity", "layer_floor", "share", "hits", "misses", "evictions", "bypassed"):
        assert found[counter] == expected[counter], counter


def test_runs_at_once_share_one_cache(fused: Path, mapped: Run) -> None:
    pooled = session(fused, residency="pool", cache_bytes=CYCLE * slot_bytes(fused))
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(run(pooled, INPUTS).outputs != mapped.outputs for _ in range(10))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == [False] * 40


def test_a_second_session_has_a_cache_of_its_own(fused: Path, mapped: Run) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("onnx_moe.residency", "pool")
    options.add_session_config_entry("onnx_moe.cache_bytes", "50%")
    first, second = (onnx_moe.InferenceSession(fused, options) for _ in range(2))
    assert run(first, INPUTS).outputs == mapped.outputs
    before = engine(first).statistics()
    assert engine(second).statistics()["reason"] == "the first run decides"
    assert run(second, INPUTS).outputs == mapped.outputs
    assert engine(first).statistics() == before


def test_a_file_that_changed_is_an_error_and_the_session_goes_on(tmp_path: Path, mapped: Run) -> None:
    path = save(Stack(), tmp_path)
    data = tmp_path / "stack.data"
    pooled = session(path, residency="pool", cache_bytes=CYCLE * slot_bytes(path))
    assert run(pooled, INPUTS).outputs == mapped.outputs
    content, status = data.read_bytes(), data.stat()
    os.truncate(data, len(content) // 2)
    with pytest.raises(Exception, match=r"layer\d.block.*expert \d+ of layer \d could not be loaded: .*stack.data at"):
        run(pooled, INPUTS)
    data.write_bytes(content)
    os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))
    result = run(pooled, INPUTS)
    assert result.outputs == mapped.outputs
    assert result.statistics["failed_loads"] > 0


def test_a_replaced_file_is_refused(tmp_path: Path) -> None:
    path = save(Stack(), tmp_path)
    pooled = session(path, residency="pool", cache_bytes="50%")
    data = tmp_path / "stack.data"
    content = data.read_bytes()
    data.rename(tmp_path / "elsewhere")
    data.write_bytes(content)
    with pytest.raises(Exception, match="is not the file any more that the session has mapped"):
        run(pooled, INPUTS)


def test_a_forked_process_is_refused(fused: Path) -> None:
    pooled = session(fused, residency="pool", cache_bytes="50%")
    run(pooled, INPUTS)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pooled.run(None, {"layer0.in": INPUTS[1]})
            os.write(writer, b"ran")
        except Exception as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert b"which was forked from it: create a session here" in os.read(reader, 10_000)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"residency": "disk"}, "onnx_moe.residency is 'disk': use one of auto, mapped, pagecache, pool"),
        ({"cache_bytes": "lots"}, "onnx_moe.cache_bytes is 'lots': use a number of bytes"),
        ({"cache_bytes": "0"}, "onnx_moe.cache_bytes is '0': use a number of bytes"),
        ({"cache_policy": "fifo"}, "onnx_moe.cache_policy is 'fifo': use one of decayed-lfu, lru"),
        ({"direct_io": "maybe"}, "onnx_moe.direct_io is 'maybe': use one of auto, on, off"),
        ({"io_threads": "0"}, "onnx_moe.io_threads is '0': use a number from 1 to 64"),
        ({"residency": "mapped", "cache_bytes": "1GiB"}, "does nothing when onnx_moe.residency is mapped"),
        ({"residency": "pagecache", "cache_policy": "lru"}, "does nothing when onnx_moe.residency is pagecache"),
    ],
)
def test_entries_that_are_wrong_or_do_nothing_are_refused(fused: Path, entries: dict[str, str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        session(fused, **entries)


def test_engine_of_a_session_that_is_gone_or_not_ours(fused: Path) -> None:
    pooled = session(fused, residency="pool", cache_bytes="50%")
    live = engine(pooled)
    del pooled
    with pytest.raises(OnnxMoeError, match="is alive"):
        live.statistics()
    plain = onnxruntime.SessionOptions()
    onnx_moe.register(plain)
    with pytest.raises(InvalidInputError, match="create it with onnx_moe"):
        engine(onnxruntime.InferenceSession(fused, plain))
