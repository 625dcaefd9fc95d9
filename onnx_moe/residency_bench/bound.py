"""What no policy can beat: Belady's, on the routing that was measured."""

from __future__ import annotations

import numpy as np

from onnx_moe.routing import CacheSetup, RoutingTrace, simulate_cache


def with_shared_experts(trace: RoutingTrace, num_experts: int) -> RoutingTrace:
    """The trace with the shared experts that each token of each layer uses, too: ids up to num_experts − 1."""
    shared = num_experts - trace.num_experts
    if shared <= 0:
        return trace
    rows = trace.experts.reshape(-1, trace.top_k)
    ids = np.broadcast_to(np.arange(trace.num_experts, num_experts, dtype=np.int32), (len(rows), shared))
    return RoutingTrace(
        num_experts,
        trace.top_k + shared,
        trace.layer_names,
        trace.layers,
        trace.phases,
        trace.requests,
        trace.offsets // trace.top_k * (trace.top_k + shared),
        np.concatenate([rows, ids], axis=1).reshape(-1),
    )


def belady_hit_rate(trace: RoutingTrace, capacity: int, tokens: int) -> float:
    """Hits / lookups of the last `tokens` tokens in a cache of `capacity` experts that knows the future."""
    result = simulate_cache(trace, CacheSetup(capacity, "belady"))
    first_call = trace.num_calls - tokens * len(np.unique(trace.layers))
    outcomes = result.outcomes[trace.offsets[first_call] :]
    lookups = int((outcomes <= 1).sum())
    return float((outcomes == 1).sum()) / lookups if lookups else 1.0
