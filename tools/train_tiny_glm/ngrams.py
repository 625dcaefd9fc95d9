"""Unigram and bigram models of the same tokens: what a neural model has to beat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint16]


def bits_per_token(tokens: dict[str, Tokens], vocabulary: int) -> dict[str, float]:
    """Mean bits per held-out token after the first of models counted on ``tokens["train"]``.

    The bigram model is interpolated with the unigram model, P(b|a) = (count(ab) + s P(b)) / (count(a) + s);
    the strength s is the best of a few on ``tokens["validation"]``.
    """
    train = tokens["train"].astype(np.int64)
    unigram = np.bincount(train, minlength=vocabulary) + 1.0
    unigram /= unigram.sum()
    pairs = np.bincount(train[:-1] * vocabulary + train[1:], minlength=vocabulary * vocabulary)
    pairs = pairs.reshape(vocabulary, vocabulary).astype(np.float64)

    def bigram_bits(split: Tokens, strength: float) -> float:
        first, second = split[:-1], split[1:]
        chances = (pairs[first, second] + strength * unigram[second]) / (pairs.sum(1)[first] + strength)
        return float(-np.log2(chances).mean())

    strength = min((1.0, 4.0, 16.0, 64.0, 256.0), key=lambda value: bigram_bits(tokens["validation"], value))
    return {
        "unigram": float(-np.log2(unigram[tokens["heldout"][1:]]).mean()),
        "bigram": bigram_bits(tokens["heldout"], strength),
    }
