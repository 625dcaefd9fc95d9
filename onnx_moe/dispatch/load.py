"""How evenly routing uses the experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_moe.dispatch.grouping import check_expert_ids, check_id_range
from onnx_moe.errors import InvalidInputError

if TYPE_CHECKING:
    from onnx_moe.dispatch.grouping import Array


def compute_expert_load(expert_ids: Array, num_experts: int) -> Any:
    """int64 [num_experts]: how often each expert occurs in integer ids [T, k], of the ids' own kind.

    Raises InvalidInputError for another shape or type, or an id outside [0, num_experts), naming row and slot.
    """
    check_expert_ids(expert_ids, num_experts)
    if isinstance(expert_ids, np.ndarray):
        check_id_range(expert_ids, num_experts)
        return np.bincount(expert_ids.reshape(-1).astype(np.int64, copy=False), minlength=num_experts)
    if expert_ids.device.type == "cpu":
        import torch

        # Torch itself counts no unsigned ids but uint8.
        return torch.from_numpy(compute_expert_load(expert_ids.numpy(), num_experts))
    ids = expert_ids.long()
    check_id_range(ids, num_experts)
    return ids.reshape(-1).bincount(minlength=num_experts)


def compute_load_balancing_loss(router_probs: Array, expert_ids: Array, num_experts: int) -> Any:
    """E · Σ_e f_e · p_e, with f_e = count_e / (T · k) and p_e = mean_t router_probs[t, e]: 1 at balance for any k.

    router_probs: probabilities before top-k [T, E]; expert_ids: chosen experts [T, k]. A scalar of router_probs' kind,
    float32 (float64 for float64): differentiable with respect to Torch router_probs, as a loss for training wants it.
    At the most E, when all mass and all choices are on one expert. The convention is that of Switch Transformers
    (Fedus et al., 2021, eq. 4); transformers' own loss does not divide by k and gives k at balance. With uniform
    router_probs it is 1 whatever the choices are: look at `compute_expert_load`, too.
    Raises InvalidInputError for shapes that do not fit, no token, or negative values, as logits have
    (`onnx_moe.routing.router_probabilities` makes probabilities of them).
    """
    tokens, slots = check_expert_ids(expert_ids, num_experts)
    if tuple(getattr(router_probs, "shape", ())) != (tokens, num_experts):
        raise InvalidInputError(
            f"router_probs has shape {list(getattr(router_probs, 'shape', ()))}, but must be [{tokens}, "
            f"{num_experts}]: the probabilities of every expert for each token, before top-k."
        )
    if tokens == 0:
        raise InvalidInputError("expert_ids holds no token: a mean over no tokens does not exist.")
    if bool((router_probs < 0).any()):
        raise InvalidInputError(
            f"router_probs holds {float(router_probs.min())}, but probabilities are not negative: pass what the logits "
            "become, not the logits."
        )
    load = compute_expert_load(expert_ids, num_experts)
    if isinstance(router_probs, np.ndarray):
        kind = np.float64 if router_probs.dtype == np.float64 else np.float32
        fraction = np.asarray(load.cpu() if hasattr(load, "cpu") else load, np.float64) / (tokens * slots)
        # In float64: sums of many float32 terms lose digits, those of float16 overflow.
        return kind(num_experts * (fraction * router_probs.mean(0, dtype=np.float64)).sum())
    import torch

    probabilities = router_probs if router_probs.element_size() >= 4 else router_probs.float()
    counts = torch.as_tensor(load, device=probabilities.device, dtype=probabilities.dtype)
    return num_experts * (counts / (tokens * slots) * probabilities.mean(0)).sum()
