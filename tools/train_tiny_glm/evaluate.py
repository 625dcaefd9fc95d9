"""Loss of a model on held-out tokens."""

from __future__ import annotations

import torch
from torch.nn import functional


@torch.no_grad()
def mean_loss(model: torch.nn.Module, tokens: torch.Tensor, window: int, batch: int = 16) -> float:
    """Mean negative log-likelihood (nats) of all tokens but the first.

    Windows follow one another and share one token, so each token is predicted once, from what precedes it in
    its window.
    """
    device = next(model.parameters()).device
    starts = list(range(0, len(tokens) - 1, window))
    pieces = [tokens[start : start + window + 1] for start in starts]
    total = 0.0
    while pieces:
        group = [pieces.pop(0)]
        while pieces and len(group) < batch and len(pieces[0]) == len(group[0]):
            group.append(pieces.pop(0))
        ids = torch.stack(group).to(device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        total += functional.cross_entropy(
            logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
        ).item()
    return total / (len(tokens) - 1)
