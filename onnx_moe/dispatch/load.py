"""How evenly routing uses the experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_moe.dispatch.grouping import check_expert_ids
from onnx_moe.errors import InvalidInputError

if TYPE_CHECKING:
    from onnx_moe.dispatch.grouping import Array


def compute_expert_load(expert_ids: Array, num_experts: int) -> Any:
    """int64 [num_experts]: how often each expert occurs in integer ids [T, k], of the ids' own kind.

    Raises InvalidInputError for another shape or type, or an id outside [0, num_experts).
    """
    check_expert_ids(expert_ids, num_experts)
    flat = expert_ids.reshape(-1)
    if len(flat) and (int(flat.min()) < 0 or int(flat.max()) >= num_experts):
        raise InvalidInputError(
            f"expert_ids holds {int(flat.min())} to {int(flat.max())}, but experts are numbered 0 to {num_experts - 1}."
        )
    if isinstance(flat, np.ndarray):
        return np.bincount(flat, minlength=num_experts)
    return flat.long().bincount(minlength=num_experts)


def compute_load_balancing_loss(router_probs: Array, expert_ids: Array, num_experts: int) -> Any:
    """E · Σ_e f_e · p_e, with f_e = count_e / (T · k) and p_e = mean_t router_probs[t, e]: 1 at balance for any k.

    router_probs: probabilities before top-k [T, E]; expert_ids: chosen experts [T, k]. A scalar of router_probs' kind,
    float32 (float64 for float64): differentiable with respect to Torch router_probs, as a loss for training wants it.
    At the most E, when all mass and all choices are on one expert. The convention is that of Switch Transformers
    (Fedus et al., 2021, eq. 4); transformers' own loss does not divide by k and gives k at balance. With uniform
    router_probs it is 1 whatever the choices are: look at `compute_expert_load`, too.
    Raises InvalidInputError for shapes that do not fit, or no token.
    """
    tokens, slots = check_expert_ids(expert_ids, num_experts)
    if tuple(router_probs.shape) != (tokens, num_experts):
        raise InvalidInputError(
            f"router_probs has shape {list(router_probs.shape)}, but must be [{tokens}, {num_experts}]: the "
            "probabilities of every expert for each token, before top-k."
        )
    if tokens == 0:
        raise InvalidInputError("expert_ids holds no token: a mean over no tokens does not exist.")
    load = compute_expert_load(expert_ids, num_experts)
    if isinstance(router_probs, np.ndarray):
        kind = np.float64 if router_probs.dtype == np.float64 else np.float32
        fraction = np.asarray(load, np.float64) / (tokens * slots)
        # In float64: a float16 mean over 1e5 tokens would stop growing at 2048 times its terms.
        return kind(num_experts * (fraction * router_probs.mean(0, dtype=np.float64)).sum())
    probabilities = router_probs if router_probs.element_size() >= 4 else router_probs.float()
    fraction = load.to(probabilities.device, probabilities.dtype) / (tokens * slots)
    return num_experts * (fraction * probabilities.mean(0)).sum()
