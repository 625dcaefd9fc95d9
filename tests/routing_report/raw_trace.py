"""A raw routing trace, token by token, and the calls that a session would have made of it."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from onnx_moe.routing import Call, RoutingTrace

LAYERS, EXPERTS, TOP_K, PROMPT, NEW = 3, 11, 2, 5, 90


def routed() -> list[tuple[int, int, int, list[int], list[float]]]:
    """(phase, request, layer, ids, weights) by token, in the order of the calls. Layer 0 never chooses expert 10."""
    random = np.random.default_rng(5)
    tokens = []
    for request in range(2):
        for phase, count in ((0, PROMPT), (1, NEW)):
            rows = defaultdict(list)
            for _ in range(count):
                for layer in range(LAYERS):
                    popularity = np.arange(1, EXPERTS + 1) ** -0.9
                    popularity[10] *= layer > 0
                    ids = random.choice(EXPERTS, TOP_K, replace=False, p=popularity / popularity.sum())
                    weights = np.sort(random.dirichlet(np.ones(TOP_K)))[::-1].astype(np.float32)
                    rows[layer].append((phase, request, layer, ids.tolist(), weights.tolist()))
            # A prompt runs layer by layer, new tokens one at a time.
            order = [rows[layer] for layer in range(LAYERS)] if phase == 0 else list(zip(*rows.values(), strict=True))
            tokens += [token for part in order for token in part]
    return tokens


TOKENS = routed()


def trace() -> RoutingTrace:
    """TOKENS as the calls of a session: the tokens of a prompt together."""
    calls: list[list] = []
    for token in TOKENS:
        if calls and token[0] == 0 and calls[-1][0][:3] == token[:3]:
            calls[-1].append(token)
        else:
            calls.append([token])
    return RoutingTrace.of_calls(
        [
            Call(
                layer=tokens[0][2],
                expert_ids=np.array([ids for *_, ids, _ in tokens], np.int32),
                expert_weights=np.array([weights for *_, weights in tokens], np.float32),
                phase=tokens[0][0],
                request=tokens[0][1],
            )
            for tokens in calls
        ],
        EXPERTS,
        [f"layer{number}" for number in range(LAYERS)],
    )
