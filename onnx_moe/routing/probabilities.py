"""Router logits as probabilities of all experts: what load balancing is computed from."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnx_moe.errors import InvalidInputError
from onnx_moe.operators import ROUTER, get_operator


def router_probabilities(router_logits: Any, scoring: str = "softmax") -> Any:
    """Probabilities [..., E] of logits [..., E], as a model that was exported with router_logits=True gives them.

    scoring: that of its MoERouter nodes. Softmax, also where the router takes it over the chosen experts alone; scores
    that do not add up to 1 (sigmoid, √softplus) are divided by their sum, as DeepSeek-V3 does for its balance loss. Of
    the logits' own kind, in float32 at least; differentiable for Torch. Raises InvalidInputError for another scoring.
    """
    if scoring not in _scorings():
        raise InvalidInputError(f"scoring={scoring!r} is unknown: use one of {', '.join(_scorings())}.")
    if isinstance(router_logits, np.ndarray):
        logits = router_logits.astype(np.float64 if router_logits.dtype == np.float64 else np.float32)
        scores = _numpy_scores(logits, scoring)
        return scores / scores.sum(-1, keepdims=True)
    logits = router_logits if router_logits.element_size() >= 4 else router_logits.float()
    if scoring.startswith("softmax"):
        return logits.softmax(-1)
    import torch

    scores = logits.sigmoid() if scoring.startswith("sigmoid") else torch.nn.functional.softplus(logits).sqrt()
    return scores / scores.sum(-1, keepdim=True)


def _scorings() -> tuple[str, ...]:
    return next(each.choices or () for each in get_operator(ROUTER).attributes if each.name == "scoring")


def _numpy_scores(logits: Any, scoring: str) -> Any:
    if scoring.startswith("softmax"):
        return np.exp(logits - logits.max(-1, keepdims=True))
    softplus = np.logaddexp(logits, 0)
    # σ(x) = exp(x − softplus(x)), which overflows nowhere.
    return np.exp(logits - softplus) if scoring.startswith("sigmoid") else np.sqrt(softplus)
