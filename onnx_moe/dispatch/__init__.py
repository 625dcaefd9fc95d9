"""Dispatch: from the router's choices to contiguous rows for each expert, and back.

`group_tokens_by_expert` is the stable counting sort that the plugin's own operators run. Everything takes numpy arrays
and Torch tensors alike and returns what it was given. `onnx_moe.dispatch.token_dispatcher` has the same under the
names of a dispatcher that calls the experts itself.
"""

from __future__ import annotations

from onnx_moe.dispatch.grouping import (
    DispatchInfo,
    MoEDispatchInfo,
    group_tokens_by_expert,
    group_tokens_by_expert_full,
)
from onnx_moe.dispatch.load import compute_expert_load, compute_load_balancing_loss
from onnx_moe.dispatch.rows import gather_for_experts, scatter_expert_outputs
from onnx_moe.dispatch.stats import DispatchStats
from onnx_moe.dispatch.token_dispatcher import (
    TokenDispatcher,
    combine_expert_outputs,
    dispatch_to_experts,
    gather_tokens_for_expert,
)

__all__ = [
    "DispatchInfo",
    "DispatchStats",
    "MoEDispatchInfo",
    "TokenDispatcher",
    "combine_expert_outputs",
    "compute_expert_load",
    "compute_load_balancing_loss",
    "dispatch_to_experts",
    "gather_for_experts",
    "gather_tokens_for_expert",
    "group_tokens_by_expert",
    "group_tokens_by_expert_full",
    "scatter_expert_outputs",
]
