"""The counts of a profile as their descriptions state them, in loops: what the native sketch is held to."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnx_moe.routing import RoutingTrace
from onnx_moe.routing.counts import GAP_BINS, LAGS, SHAPES, WINDOWS, shaped

FIRST_WINDOW = 16


def naive_counts(trace: RoutingTrace, probabilities: Any = None) -> dict[str, Any]:
    layers, experts, k = trace.num_layers, trace.num_experts, trace.top_k
    kinds = {"mass": float, "mass_squares": float, "probability_sums": float, "window_mass": float}
    kinds["window_probabilities"] = float
    out = {n: shaped(n, np.zeros(0, kinds.get(n, np.int64)), layers, experts, k) for n in SHAPES}
    out["first_use"][:] = -1
    out["requests"][0] = len(set(trace.requests.tolist()))
    rows: list[list[dict[str, Any]]] = [[] for _ in range(layers)]  # tokens of each layer
    sequences: dict[tuple[int, int, int], list[set[int]]] = {}
    last_call: dict[int, dict[str, Any]] = {}
    stack: list[tuple[int, int]] = []  # most recent first
    token_number = 0
    for number in range(trace.num_calls):
        layer, phase, request = (int(column[number]) for column in (trace.layers, trace.phases, trace.requests))
        begin, end = (int(trace.offsets[number + i]) for i in range(2))
        tokens = trace.experts[begin:end].reshape(-1, k).tolist()
        weights = None if trace.weights is None else trace.weights[begin:end].reshape(-1, k).tolist()
        out["calls"][phase, layer] += 1
        for row, ids in enumerate(tokens):
            for rank, expert in enumerate(ids):
                out["rank_counts"][phase, layer, expert, rank] += 1
                out["uses"][phase, layer, expert] += 1
                if weights is not None:
                    out["weighted_uses"][phase, layer, expert] += 1
                    out["mass"][phase, layer, expert] += weights[row][rank]
                    out["mass_squares"][phase, layer, expert] += weights[row][rank] ** 2
            for i, a in enumerate(ids):
                for b in ids[i + 1 :]:
                    out["pairs"][layer, a, b] += 1
            now = len(rows[layer])
            for expert in ids:
                uses = [t for t, token in enumerate(rows[layer]) if expert in token["ids"]]
                if uses:
                    out["gaps"][phase, layer, min(int(np.log2(now - uses[-1])), GAP_BINS - 1)] += 1
                else:
                    out["first_use"][layer, expert] = now
                if ids.index(expert) != len(ids) - 1 - ids[::-1].index(expert):
                    raise NotImplementedError("repeated experts of a token")
            sequence = sequences.setdefault((layer, request, row if phase == 1 else 0), [])
            for lag in range(1, min(LAGS, len(sequence)) + 1):
                out["lag_shared"][phase, layer, lag - 1] += len(set(ids) & sequence[-lag])
                out["lag_tokens"][phase, layer, lag - 1] += 1
            sequence.append(set(ids))
            known = None if probabilities is None else probabilities[token_number]
            if known is not None:
                out["probability_sums"][phase, layer] += known
                out["probability_tokens"][phase, layer] += 1
            row_weights = None if weights is None else weights[row]
            rows[layer].append({"ids": ids, "phase": phase, "weights": row_weights, "probabilities": known})
            token_number += 1
            out["tokens"][phase, layer] += 1
        before = last_call.get(layer, {"number": -1})["number"]
        calls_of_layer = int(out["calls"][:, layer].sum())
        call = {"number": number, "key": (request, phase, len(tokens)), "tokens": tokens}
        last_call[layer] = call
        for earlier in range(layer):
            other = last_call.get(earlier)
            if other is None or other["number"] < before or other["key"] != call["key"]:
                continue
            for a, b in zip(other["tokens"], tokens, strict=True):
                if calls_of_layer % 8 == 1:
                    out["layer_shared"][earlier, layer] += len(set(a) & set(b))
                    out["layer_tokens"][earlier, layer] += 1
                    out["layer_sizes"][earlier, layer] += len(set(a))
                    out["layer_sizes"][layer, earlier] += len(set(b))
                if earlier == layer - 1:
                    out["transition_tokens"][layer] += 1
                    for x in a:
                        for y in b:
                            out["transitions"][layer, x, y] += 1
        distinct = list(dict.fromkeys((layer, expert) for ids in tokens for expert in ids))
        for key in distinct:
            distance = stack.index(key) if key in stack else layers * experts
            out["stack_distances"][phase, distance] += 1
        for key in distinct:
            if key in stack:
                stack.remove(key)
            stack.insert(0, key)
    for phase in range(2):
        longest = max((sum(t["phase"] == phase for t in of_layer) for of_layer in rows), default=0)
        size = FIRST_WINDOW
        while longest > size * WINDOWS:
            size *= 2
        out["window_tokens"][phase] = size
        for layer, of_layer in enumerate(rows):
            for index, token in enumerate([t for t in of_layer if t["phase"] == phase]):
                window = index // size
                for rank, expert in enumerate(token["ids"]):
                    out["window_counts"][phase, window, layer, expert] += 1
                    if token["weights"] is not None:
                        out["window_mass"][phase, window, layer, expert] += token["weights"][rank]
                if token["probabilities"] is not None:
                    out["window_probabilities"][phase, window, layer] += token["probabilities"]
    return out
