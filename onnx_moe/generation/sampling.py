"""From logits to a token: temperature, top-k, top-p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. temperature: 0 takes the likeliest. top_k: of so many likeliest, 0 of all. top_p: of the
    fewest likeliest that hold so much probability (Holtzman et al., 2020), 1 of all. seed: None draws anew each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InvalidInputError(f"temperature={self.temperature} must be 0 or more; 0 takes the likeliest token.")
        if not 0 < self.top_p <= 1:
            raise InvalidInputError(f"top_p={self.top_p} must be more than 0 and at most 1; 1 leaves nothing out.")
        if self.top_k < 0:
            raise InvalidInputError(f"top_k={self.top_k} must be 0 or more; 0 leaves nothing out.")
        narrows = self.top_k or self.top_p < 1 or self.seed is not None
        if self.temperature == 0 and narrows:
            raise InvalidInputError(
                "top_k, top_p and seed have no effect at temperature 0, which takes the likeliest token: "
                "give a temperature, such as 0.7, or leave them out."
            )


class Sampler:
    """Draws tokens one after another."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def draw(self, logits: NDArray[np.floating]) -> int:
        """A token for logits [V]."""
        sampling = self._sampling
        if sampling.temperature == 0:
            return int(logits.argmax())
        tokens = np.argsort(-logits, kind="stable")
        if sampling.top_k:
            tokens = tokens[: sampling.top_k]
        scores = logits[tokens].astype(np.float64) / sampling.temperature
        weights = np.exp(scores - scores[0])
        weights /= weights.sum()
        # The first token that reaches top_p still belongs to those that are kept.
        kept = int(np.searchsorted(weights.cumsum(), sampling.top_p)) + 1 if sampling.top_p < 1 else len(tokens)
        weights = weights[:kept] / weights[:kept].sum()
        return int(self._random.choice(tokens[:kept], p=weights))
