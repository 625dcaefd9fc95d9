"""How tokens spread over experts: counting, balancing, statistics."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from model import routers


class LoadCounter:
    """Counts how often each expert is chosen in forward passes; ``counts`` is int64 [MoE layers, experts]."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.routers = routers(model)
        first = self.routers[0]
        self.counts = torch.zeros(len(self.routers), first.num_experts, dtype=torch.int64, device=first.weight.device)
        for layer, router in enumerate(self.routers):
            router.register_forward_hook(self._recorder(layer))

    def _recorder(self, layer: int) -> Callable[[torch.nn.Module, object, tuple[torch.Tensor, ...]], None]:
        def record(_module: torch.nn.Module, _inputs: object, outputs: tuple[torch.Tensor, ...]) -> None:
            chosen = outputs[2].detach().flatten()
            self.counts[layer].scatter_add_(0, chosen, torch.ones_like(chosen))

        return record

    def take(self) -> torch.Tensor:
        """The counts since the last call."""
        counts = self.counts.clone()
        self.counts.zero_()
        return counts

    def balance(self, counts: torch.Tensor, step: float) -> None:
        """Auxiliary-loss-free balancing: biases of under-loaded experts rise by ``step``, others fall.

        DeepSeek-V3 Technical Report (arXiv 2412.19437), section 2.1.2. The bias only decides which experts
        are chosen, never their weights.
        """
        loads = counts.float()
        signs = torch.sign(loads.mean(dim=1, keepdim=True) - loads)
        for router, sign in zip(self.routers, signs, strict=True):
            router.e_score_correction_bias.add_(sign, alpha=step)


def entropy_bits(counts: torch.Tensor) -> torch.Tensor:
    """Entropy of each layer's load in bits; log2(experts) when perfectly even."""
    shares = counts.double() / counts.sum(dim=1, keepdim=True)
    return -(shares * shares.clamp_min(1e-300).log2()).sum(dim=1)


def load_statistics(counts: torch.Tensor) -> dict[str, list[float]]:
    """Per layer: busiest and idlest expert relative to the mean, normalised entropy, experts never chosen."""
    mean = counts.double().mean(dim=1)
    normalised = entropy_bits(counts) / math.log2(counts.shape[1])
    return {
        "max_over_mean": _rounded(counts.amax(dim=1) / mean),
        "min_over_mean": _rounded(counts.amin(dim=1) / mean),
        "entropy": _rounded(normalised),
        "dead": (counts == 0).sum(dim=1).tolist(),
    }


def divergence_bits(first: torch.Tensor, second: torch.Tensor) -> list[float]:
    """Jensen-Shannon divergence of two loads per layer: 0 when equal, 1 bit when no expert is shared."""
    shares = [counts.double() / counts.sum(dim=1, keepdim=True) for counts in (first, second)]
    middle = entropy_bits((shares[0] + shares[1]) / 2)
    return _rounded(middle - (entropy_bits(shares[0]) + entropy_bits(shares[1])) / 2)


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]
