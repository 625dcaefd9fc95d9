"""Routing as trained models show it, without a model: skewed, sticky, and by topic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.models import KnownModel, known_model
from onnx_moe.routing.trace import DECODE, PREFILL, RoutingTrace, check_sizes

Array = NDArray[Any]


#: Experts of a layer in the traces that the defaults below are fitted to.
_FITTED_EXPERTS = 128


@dataclass(frozen=True)
class RoutingStyle:
    """How tokens choose. An expert is drawn with a weight that is a product of

    - its popularity in its layer, rank^−zipf, ranks dealt anew in each layer;
    - how the topic likes it, log-normal with topic_spread; a topic lasts topic_tokens on average, and a new request
      begins a new one of num_topics;
    - how the token's kind likes it, log-normal with kind_spread: of num_kinds, drawn for each token, the same in all
      layers, so that layers tell each other's choices;
    - 1 + reuse, if the token before chose it: a Markov chain.

    The defaults are fitted to public traces of models with 128 experts (128 decoded tokens, top-6; in brackets the
    means of Qwen3-30B-A3B's): entropy 0.73 (0.74), Gini 0.78 (0.77), 75 (64) experts of a layer in use, overlap with
    the token before 0.38 (0.38), with the eighth before 0.29 (0.27), LRU hits with an eighth of the experts 0.60
    (0.58), with a quarter 0.82 (0.83), recall of a cross-layer table 0.44 (0.51). Layers of fewer experts are more even
    in trained models, so spreads shrink with ln E below 128.
    """

    zipf: float = 0.8
    topic_spread: float = 2.2
    kind_spread: float = 2.0
    num_kinds: int = 12
    num_topics: int = 16
    topic_tokens: float = 400.0
    reuse: float = 2.5

    def __post_init__(self) -> None:
        least = {
            "zipf": 0,
            "topic_spread": 0,
            "kind_spread": 0,
            "num_kinds": 1,
            "num_topics": 1,
            "topic_tokens": 1,
            "reuse": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= bound):
                raise InvalidInputError(f"{name} is {value}, but must be at least {bound}.")


class RoutingSimulator:
    """Draws routing for layers of num_experts; the same seed draws the same. Raises InvalidInputError for sizes that
    cannot be.
    """

    def __init__(
        self, num_layers: int, num_experts: int, top_k: int, style: RoutingStyle | None = None, seed: int = 0
    ) -> None:
        check_sizes(num_experts, num_layers, top_k)
        if seed < 0:
            raise InvalidInputError(f"seed is {seed}, but must be at least 0.")
        self._style = style or RoutingStyle()
        self._shape = (num_layers, num_experts)
        self._top_k = top_k
        self._random = np.random.default_rng(seed)
        ranks = np.argsort(self._random.random(self._shape), axis=1) + 1
        self._popularity = (ranks**-self._style.zipf).astype(np.float32)
        self._topics = self._log_normal(self._style.num_topics, self._style.topic_spread)
        self._kinds = self._log_normal(self._style.num_kinds, self._style.kind_spread)
        self._begin_topic()
        self._before = np.ones(self._shape, np.float32)

    def _log_normal(self, count: int, spread: float) -> Array:
        normal = self._random.standard_normal((count, *self._shape), dtype=np.float32)
        fewer = min(np.log(max(self._shape[1], 2)) / np.log(_FITTED_EXPERTS), 1.0)
        liking: Array = np.exp(np.float32(spread * fewer) * normal)
        return liking

    def _begin_topic(self) -> None:
        self._liked = self._popularity * self._topics[self._random.integers(self._style.num_topics)]

    def begin_request(self) -> None:
        """The next token is the first of a new sequence, on a topic of its own."""
        self._begin_topic()
        self._before[:] = 1

    def token(self) -> tuple[Array, Array]:
        """Experts [L, top_k], best first, and their weights, of the next token."""
        if self._random.random() < 1 / self._style.topic_tokens:
            self._begin_topic()
        weight = self._liked * self._before
        weight *= self._kinds[self._random.integers(self._style.num_kinds)]
        # Of exponential times with these rates, the first k are k draws without replacement.
        times = self._random.standard_exponential(self._shape, dtype=np.float32) / weight
        np.maximum(times, np.finfo(np.float32).tiny, out=times)
        chosen = np.argpartition(times, self._top_k - 1, axis=1)[:, : self._top_k]
        scores = np.take_along_axis(times, chosen, 1)
        order = np.argsort(scores, axis=1)
        chosen = np.take_along_axis(chosen, order, 1)
        scores = np.take_along_axis(scores, order, 1) ** -0.5
        self._before[:] = 1
        np.put_along_axis(self._before, chosen, np.float32(1 + self._style.reuse), 1)
        return chosen.astype(np.int32), scores / scores.sum(1, keepdims=True)


def simulate_routing(
    model: KnownModel | str,
    tokens: int = 2000,
    *,
    prompt_tokens: int = 32,
    request_tokens: int = 256,
    style: RoutingStyle | None = None,
    seed: int = 42,
    progress: Callable[[float], None] | None = None,
) -> RoutingTrace:
    """A trace of a known model's shape: `tokens` decoded tokens, in requests of request_tokens, each after a prompt.

    Raises InvalidInputError for an unknown model or no tokens.
    """
    known = known_model(model) if isinstance(model, str) else model
    for name, value, least in (("tokens", tokens, 1), ("prompt_tokens", prompt_tokens, 0)):
        if value < least:
            raise InvalidInputError(f"{name} is {value}, but must be at least {least}.")
    if request_tokens < 1:
        raise InvalidInputError(f"request_tokens is {request_tokens}, but must be at least 1.")
    layers, top_k = known.num_moe_layers, known.top_k
    simulator = RoutingSimulator(layers, known.num_experts, top_k, style, seed)
    requests = -(-tokens // request_tokens)
    total = tokens + requests * prompt_tokens
    ids, weights = np.empty((total, layers, top_k), np.int32), np.empty((total, layers, top_k), np.float32)
    phases, request_of = np.empty(total, np.uint8), np.empty(total, np.int32)
    at = 0
    for request in range(requests):
        simulator.begin_request()
        decoded = min(request_tokens, tokens - request * request_tokens)
        request_of[at : at + prompt_tokens + decoded] = request
        phases[at : at + prompt_tokens] = PREFILL
        phases[at + prompt_tokens : at + prompt_tokens + decoded] = DECODE
        for _ in range(prompt_tokens + decoded):
            ids[at], weights[at] = simulator.token()
            at += 1
            if progress is not None and at % 256 == 0:
                progress(at / total)
    return _as_trace(known, ids, weights, phases, request_of)


def _as_trace(known: KnownModel, ids: Array, weights: Array, phases: Array, requests: Array) -> RoutingTrace:
    """Tokens [T, L, k] as calls: a prompt's tokens pass each layer together, decoded ones one by one."""
    total, layers, top_k = ids.shape
    tokens, layer_of = np.divmod(np.arange(total * layers), layers)
    first = np.zeros(total, np.int64)
    starts = np.flatnonzero(np.concatenate([[True], (requests[1:] != requests[:-1]) | (phases[1:] != phases[:-1])]))
    first[starts] = starts
    # The place of a token's pass: its own for decoding, the prompt's first token for prompts.
    place = np.where(phases == PREFILL, np.maximum.accumulate(first), np.arange(total))[tokens]
    order = np.lexsort((tokens, layer_of, place))
    call_of_row = place[order] * layers + layer_of[order]
    begins = np.flatnonzero(np.concatenate([[True], call_of_row[1:] != call_of_row[:-1]]))
    rows = order[begins]
    names = tuple(f"layers.{known.dense_layers + layer}" for layer in range(layers))
    return RoutingTrace(
        known.num_experts,
        top_k,
        names,
        layer_of[rows].astype(np.int32),
        phases[tokens[rows]],
        requests[tokens[rows]],
        np.append(begins, len(order)).astype(np.int64) * top_k,
        ids.reshape(-1, top_k)[order].reshape(-1),
        weights.reshape(-1, top_k)[order].reshape(-1),
    )
