"""Cache policies, in the simulator and in the engine, on routing that looks like a real model's."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_moe.cache import engine
from onnx_moe.operators import DOMAIN, VERSION
from onnx_moe.routing import CacheSetup, simulate_cache
from tests.residency.model import session
from tests.residency.traces import Routing, as_trace, draw

COLUMNS = 32


@pytest.mark.parametrize("seed", [0, 1])
def test_the_traces_look_like_public_ones(seed: int) -> None:
    routing = Routing(seed=seed)
    ids = draw(routing)
    counts = np.stack([np.bincount(layer.ravel(), minlength=routing.experts) for layer in ids.swapaxes(0, 1)])
    shares = counts / counts.sum(-1, keepdims=True)
    entropy = -np.sum(shares * np.log(np.maximum(shares, 1e-300)), -1) / np.log(routing.experts)
    ranks = 2 * np.arange(1, routing.experts + 1) - routing.experts - 1
    gini = np.sum(ranks * np.sort(shares), -1) / routing.experts
    again = [len({*a} & {*b}) for last, token in itertools.pairwise(ids) for a, b in zip(last, token, strict=True)]
    assert np.mean(entropy) == pytest.approx(0.74, abs=0.03)
    assert np.mean(gini) == pytest.approx(0.77, abs=0.05)
    assert np.mean(np.count_nonzero(counts, -1)) == pytest.approx(64, abs=8)
    assert np.mean(again) / routing.top_k == pytest.approx(0.38, abs=0.04)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_policy_beats_beladys_and_decayed_lfu_is_no_worse_than_lru(seed: int) -> None:
    routing = Routing(tokens=256, seed=seed)
    trace = as_trace(draw(routing), routing.experts)
    rates: dict[tuple[float, str], float] = {}
    for share in (0.0625, 0.125, 0.25, 0.5, 0.75):
        capacity = round(share * routing.layers * routing.experts)
        floor = min(2 * routing.top_k, capacity // routing.layers)
        for policy in ("lru", "decayed-lfu", "belady"):
            setup = CacheSetup(capacity, policy, layer_floor=0 if policy == "belady" else floor)
            rates[share, policy] = simulate_cache(trace, setup).hit_rate
        pinned = CacheSetup(capacity, "lru", pinned=range(0, capacity // 2 * 2, 2))
        best = rates[share, "belady"]
        assert max(rates[share, "lru"], rates[share, "decayed-lfu"], simulate_cache(trace, pinned).hit_rate) <= best
    assert rates[0.25, "decayed-lfu"] >= rates[0.25, "lru"] - 0.01
    assert rates[0.25, "lru"] > 0.5  # the cache is of use, so that the comparison says something


def save_follower(routing: Routing, folder: Path, rows: int = COLUMNS, columns: int = COLUMNS) -> Path:
    """A model whose layers use the experts that its inputs "ids0", "ids1", … say."""
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    for layer in range(routing.layers):
        codes = rng.integers(0, 256, (routing.experts, rows, columns // 2), dtype=np.uint8)
        scales = rng.integers(118, 122, (routing.experts, rows, columns // 32), dtype=np.uint8)
        names = [f"codes{layer}", f"scales{layer}"]
        tensors += [numpy_helper.from_array(array, name) for array, name in zip((codes, scales), names, strict=True)]
        # Each waits for the one before it, so that they run in order.
        hidden = f"hidden{layer}"
        product = helper.make_node(
            "MoEExpertGemmFP4", [hidden, f"ids{layer}", *names], [f"y{layer}"], name=f"layer{layer}", domain=DOMAIN
        )
        mean = helper.make_node("ReduceMean", [f"y{layer}", "axis"], [f"hidden{layer + 1}"], keepdims=0)
        nodes += [product, mean]
    tensors.append(numpy_helper.from_array(np.array([1]), "axis"))
    value = helper.make_tensor_value_info
    inputs = [value("hidden0", TensorProto.FLOAT, ["tokens", columns])]
    inputs += [value(f"ids{layer}", TensorProto.INT32, ["tokens", routing.top_k]) for layer in range(routing.layers)]
    outputs = [value(f"hidden{routing.layers}", TensorProto.FLOAT, None)]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph(nodes, "follower", inputs, outputs, tensors)
    path = folder / "follower.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10),
        path,
        save_as_external_data=True,
        location="follower.data",
        size_threshold=1024,
    )
    return path


SMALL = Routing(layers=4, experts=32, top_k=3, tokens=150, zipf=3, zipf_offset=8)


@pytest.fixture(scope="module")
def follower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_follower(SMALL, tmp_path_factory.mktemp("follower"))


def follow(path: Path, ids: NDArray[np.int32], **entries: object) -> tuple[list[bytes], dict[str, Any]]:
    live = session(path, **entries)
    hidden = np.ones((1, live.get_inputs()[0].shape[1]), np.float32)
    outputs = []
    for token in ids:
        feeds = {f"ids{layer}": of_layer[None] for layer, of_layer in enumerate(token)}
        outputs.append(live.run(None, {"hidden0": hidden, **feeds})[0].tobytes())
    return outputs, engine(live).statistics()


@pytest.mark.parametrize("prefetch", ["off", "cross-layer", "recency"])
@pytest.mark.parametrize("policy", ["lru", "decayed-lfu"])
@pytest.mark.parametrize("budget", ["20%", "25%", "50%"])
def test_the_engine_counts_what_the_simulator_counts(follower: Path, budget: str, policy: str, prefetch: str) -> None:
    ids = draw(SMALL)
    expected, _ = follow(follower, ids, residency="mapped")
    entries = {} if prefetch == "off" else {"prefetch": prefetch, "prefetch_precision": 0.3}
    outputs, live = follow(follower, ids, residency="pool", cache_bytes=budget, cache_policy=policy, **entries)
    assert outputs == expected
    setup = CacheSetup(live["capacity"], policy, layer_floor=live["layer_floor"], share=live["share"])
    replayed = simulate_cache(as_trace(ids, SMALL.experts), setup)
    counters = ("hits", "misses", "evictions", "bypassed")
    assert [live[name] for name in counters] == [getattr(replayed, name) for name in counters]
    ideal = simulate_cache(as_trace(ids, SMALL.experts), CacheSetup(live["capacity"], "belady"))
    assert 0 < live["hits"] <= ideal.hits
