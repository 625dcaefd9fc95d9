"""How a call used the experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_moe.dispatch.grouping import DispatchInfo


@dataclass(frozen=True)
class DispatchStats:
    """How a call used the experts.

    min_expert_load is that of the experts that had any rows. load_imbalance: standard deviation over mean of the
    non-zero loads, 0 with one active expert or none; load_imbalance_all: the same over all experts, which also shows
    that most of them were idle.
    """

    num_tokens: int
    top_k: int
    num_experts: int
    active_experts: int
    max_expert_load: int
    min_expert_load: int
    load_imbalance: float
    load_imbalance_all: float

    @classmethod
    def of(cls, info: DispatchInfo) -> DispatchStats:
        """The statistics of a grouping."""
        offsets = info.expert_offsets
        loads = np.diff(offsets if isinstance(offsets, np.ndarray) else offsets.cpu().numpy())
        active = loads[loads > 0]
        return cls(
            num_tokens=info.num_tokens,
            top_k=info.top_k,
            num_experts=info.num_experts,
            active_experts=int(active.size),
            max_expert_load=int(active.max(initial=0)),
            min_expert_load=int(active.min()) if active.size else 0,
            load_imbalance=_variation(active) if active.size > 1 else 0.0,
            load_imbalance_all=_variation(loads) if active.size else 0.0,
        )


def _variation(loads: Any) -> float:
    return float(loads.std() / loads.mean())
