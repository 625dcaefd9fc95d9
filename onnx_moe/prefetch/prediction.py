"""Which experts a layer's next token is likely to choose, from routing alone: the plugin's own signals."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe import _native_prediction as native
from onnx_moe.cache.ids import routing_rows
from onnx_moe.errors import InvalidInputError


class PrefetchStrategy(Enum):
    """How next experts follow from past ones.

    REPEAT: the current token's again. HISTORY: the most frequent of the window. TOP_K_RECENCY: by decayed frequency,
    current ones first. ATTENTION_GUIDED: like TOP_K_RECENCY, each past token's experts counting as much as the current
    token attends to it. CROSS_LAYER: by what followed the experts of the layer before, learned meanwhile; it watches
    whole models, so that only an ExpertPrefetcher offers it.
    """

    REPEAT = "repeat"
    HISTORY = "history"
    TOP_K_RECENCY = "recency"
    ATTENTION_GUIDED = "attention"
    CROSS_LAYER = "cross-layer"


_RULES = {
    PrefetchStrategy.REPEAT: native.REPEAT,
    PrefetchStrategy.HISTORY: native.HISTORY,
    PrefetchStrategy.TOP_K_RECENCY: native.RECENCY,
    PrefetchStrategy.ATTENTION_GUIDED: native.WEIGHTED,
}


class RoutingHistory:
    """The experts of a layer's last tokens, at most window_size of them. Safe to use from any number of threads."""

    def __init__(self, layer_idx: int, window_size: int) -> None:
        if window_size < 1:
            raise InvalidInputError(f"window_size is {window_size}, but must be at least 1.")
        self.layer_idx = layer_idx
        self.window_size = window_size
        self.native = native.History(window_size)

    def __len__(self) -> int:
        return len(self.native)

    def record(self, expert_ids: Sequence[int]) -> None:
        """The newest token's experts. The oldest token beyond the window is forgotten."""
        self.native.record(expert_ids)

    def get_last_experts(self) -> list[int]:
        """Experts of the newest token; none before the first."""
        return self.native.last()

    def get_frequency_counts(self, decay: float = 1.0) -> dict[int, float]:
        """{expert: Σ decay^age of the tokens that chose it}; the newest token has age 0."""
        return self.native.frequencies(decay)

    def clear(self) -> None:
        """Forgets every token."""
        self.native.clear()


def predict_next_experts(
    current_routing: Any,
    attention_pattern: Any = None,
    history: RoutingHistory | None = None,
    num_experts: int = 64,
    strategy: PrefetchStrategy = PrefetchStrategy.TOP_K_RECENCY,
    prefetch_k: int = 4,
    decay_factor: float = 0.9,
    min_confidence: float = 0.05,
) -> list[int]:
    """At most prefetch_k experts that the next token is likely to choose, the likeliest first.

    current_routing: ids of the current token [k], or of several [T, k]: numpy, Torch or lists. history: of the layer;
    without one, or with an empty one, the current experts are the prediction. Scores: HISTORY counts uses in the window
    and drops experts with less than min_confidence of all of them (an average expert has 1 / num_experts: lower it for
    many small experts); TOP_K_RECENCY takes Σ decay_factor^age, plus 2 for each current expert; ATTENTION_GUIDED the
    same with the mean over heads of attention_pattern [..., positions] in place of the decay, its last positions being
    the history's tokens, scaled to a largest weight of 1. Ties keep the order in which the experts came.

    Raises InvalidInputError for ids out of range, parameters out of range, an attention pattern that the strategy does
    not look at, or that it needs and lacks.
    """
    if strategy not in _RULES:
        raise InvalidInputError(
            f"{strategy} watches the routing of all layers: use it as the strategy of an ExpertPrefetcher."
        )
    check_parameters(prefetch_k, decay_factor, min_confidence)
    if (attention_pattern is not None) != (strategy is PrefetchStrategy.ATTENTION_GUIDED):
        raise InvalidInputError(
            f"attention_pattern is {'missing' if attention_pattern is None else 'given'}, but {strategy}"
            f" {'needs' if attention_pattern is None else 'does not look at'} it."
        )
    current = list(dict.fromkeys(routing_rows(current_routing, num_experts).reshape(-1).tolist()))
    past = None if history is None or not len(history) else history
    if past is None:
        return native.predict(native.Request(native.REPEAT, prefetch_k, decay_factor, min_confidence), None, current)
    weights = None if attention_pattern is None else _attention_weights(attention_pattern, len(past))
    request = native.Request(_RULES[strategy], prefetch_k, decay_factor, min_confidence, weights)
    return native.predict(request, past.native, current)


def check_parameters(prefetch_k: int, decay_factor: float, min_confidence: float) -> None:
    """InvalidInputError unless prefetch_k ≥ 1, 0 < decay_factor ≤ 1 and 0 ≤ min_confidence ≤ 1."""
    if prefetch_k < 1:
        raise InvalidInputError(f"prefetch_k is {prefetch_k}, but must be at least 1.")
    if not 0 < decay_factor <= 1:
        raise InvalidInputError(f"decay_factor is {decay_factor}, but must lie in (0, 1].")
    if not 0 <= min_confidence <= 1:
        raise InvalidInputError(f"min_confidence is {min_confidence}, but must lie in [0, 1].")


def _attention_weights(attention_pattern: Any, tokens: int) -> NDArray[np.float64]:
    """Weights [tokens] of the history's tokens, oldest first."""
    pattern = np.asarray(
        attention_pattern.detach().cpu().float() if hasattr(attention_pattern, "detach") else attention_pattern,
        np.float64,
    )
    if pattern.ndim < 1 or pattern.shape[-1] < tokens:
        raise InvalidInputError(
            f"attention_pattern has shape {list(pattern.shape)}, but the history holds {tokens} tokens: it must be "
            "[..., positions] with at least as many."
        )
    weights: NDArray[np.float64] = pattern.reshape(-1, pattern.shape[-1]).mean(0)[-tokens:]
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise InvalidInputError("attention_pattern holds negative or non-finite weights: pass probabilities.")
    weights /= max(weights.max(), np.finfo(np.float64).tiny)  # nobody attends to them: all 0
    return weights
