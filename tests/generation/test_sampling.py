"""Choosing tokens: what is kept, how often each is drawn, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_moe.errors import InvalidInputError
from onnx_moe.generation.sampling import Sampler, Sampling

#: Probabilities 1/2, 1/4, 1/8, 1/8 at temperature 1, not in order.
LOGITS = np.log(np.array([0.125, 0.5, 0.125, 0.25], np.float32))


def shares(sampling: Sampling, draws: int = 4000) -> list[float]:
    """How often each token is drawn."""
    sampler = Sampler(sampling)
    counts = np.bincount([sampler.draw(LOGITS) for _ in range(draws)], minlength=len(LOGITS))
    return [float(share) for share in counts / draws]


def test_temperature_zero_takes_the_likeliest() -> None:
    assert shares(Sampling(), 3) == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0, seed=1), [0.125, 0.5, 0.125, 0.25]),
        (Sampling(0.5, seed=2), [1 / 22, 16 / 22, 1 / 22, 4 / 22]),
        (Sampling(1.0, top_k=2, seed=3), [0, 2 / 3, 0, 1 / 3]),
        (Sampling(1.0, top_p=0.5, seed=4), [0, 1, 0, 0]),
        (Sampling(1.0, top_p=0.51, seed=5), [0, 2 / 3, 0, 1 / 3]),
        (Sampling(1.0, top_k=3, top_p=0.9, seed=6), [1 / 7, 4 / 7, 0, 2 / 7]),
    ],
    ids=["all", "cold", "top-k", "top-p at a border", "top-p", "both"],
)
def test_shares(sampling: Sampling, expected: list[float]) -> None:
    actual = shares(sampling)
    assert [share == 0 for share in actual] == [share == 0 for share in expected]
    # Four standard deviations of a share of 4,000 draws are at most 4 · √(1/4 / 4000).
    np.testing.assert_allclose(actual, expected, atol=0.032)


def test_a_seed_draws_the_same_again() -> None:
    first, second = Sampler(Sampling(1.0, seed=7)), Sampler(Sampling(1.0, seed=7))
    assert [first.draw(LOGITS) for _ in range(50)] == [second.draw(LOGITS) for _ in range(50)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0 must be more than 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5"),
        ({"temperature": 1.0, "top_k": -1}, "top_k=-1"),
        ({"top_p": 0.5}, "no effect at temperature 0"),
        ({"seed": 3}, "no effect at temperature 0"),
    ],
)
def test_misuse(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Sampling(**arguments)  # type: ignore[arg-type]
