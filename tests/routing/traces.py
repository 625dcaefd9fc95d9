"""Traces that tests share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from onnx_moe.routing import Call, RoutingTrace
from onnx_moe.routing.trace import DECODE, PREFILL


def random_trace(
    seed: int, passes: int = 40, layers: int = 4, experts: int = 9, top_k: int = 3, weights: bool = True
) -> RoutingTrace:
    """Passes through all layers: prompts of several tokens, single tokens and batches, of three requests, mixed."""
    random = np.random.default_rng(seed)
    calls = []
    for _ in range(passes):
        phase, request = int(random.integers(2)), int(random.integers(3))
        tokens = int(random.integers(1, 7)) if phase == PREFILL else int(random.integers(1, 4))
        for layer in range(layers):
            ids = np.stack([random.permutation(experts)[:top_k] for _ in range(tokens)]).astype(np.int32)
            mass = random.random((tokens, top_k)).astype(np.float32) if weights else None
            calls.append(Call(layer, ids, mass, phase, request))
    return RoutingTrace.of_calls(calls, experts, layers)


@st.composite
def traces(draw: st.DrawFn, max_calls: int = 25) -> RoutingTrace:
    """Any calls at all: layers in any order, empty calls too."""
    layers, experts = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    top_k = draw(st.integers(1, experts))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    calls = []
    for _ in range(draw(st.integers(1, max_calls))):
        tokens = draw(st.integers(0, 4))
        ids = [random.permutation(experts)[:top_k] for _ in range(tokens)]
        layer, phase = draw(st.integers(0, layers - 1)), draw(st.sampled_from([PREFILL, DECODE]))
        mass = random.random((tokens, top_k)).astype(np.float32)
        ids_array = np.array(ids, np.int32).reshape(tokens, top_k)
        calls.append(Call(layer, ids_array, mass, phase, draw(st.integers(0, 2))))
    return RoutingTrace.of_calls(calls, experts, layers)


def decoded(ids: np.ndarray, experts: int) -> RoutingTrace:
    """Single tokens of one request through all layers: ids [T, L, k]."""
    tokens, layers, top_k = ids.shape
    calls = [Call(layer, ids[t, layer][None].astype(np.int32)) for t in range(tokens) for layer in range(layers)]
    assert top_k == calls[0].expert_ids.shape[1]
    return RoutingTrace.of_calls(calls, experts, layers)
