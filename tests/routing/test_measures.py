"""Measures against figures worked out by hand, and their bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_moe.dispatch import compute_load_balancing_loss
from onnx_moe.routing import measures

counts_lists = st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(any)


def test_entropy() -> None:
    assert measures.entropy(np.array([5, 5, 5, 5])) == pytest.approx(1.0)
    assert measures.entropy(np.array([9, 0, 0])) == 0.0
    assert measures.entropy(np.array([1, 1, 0, 0])) == pytest.approx(0.5)
    assert np.isnan(measures.entropy(np.zeros(4)))


def test_gini() -> None:
    assert measures.gini(np.array([3, 3, 3])) == pytest.approx(0.0)
    assert measures.gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    values = np.array([4.0, 1.0, 9.0, 0.0])
    differences = np.abs(values[:, None] - values[None]).sum()
    assert measures.gini(values) == pytest.approx(differences / (2 * 4 * values.sum()))


def test_variation() -> None:
    assert measures.variation(np.array([4, 4, 0, 0])) == pytest.approx(1.0)
    assert measures.variation(np.array([4, 4, 0, 0]), active_only=True) == 0.0
    assert math.isnan(measures.variation(np.zeros(3)))


@given(counts_lists)
def test_bounds(values: list[int]) -> None:
    counts = np.array(values)
    assert 0 <= measures.entropy(counts) <= 1 + 1e-12
    assert -1e-12 <= measures.gini(counts) <= 1 - 1 / len(counts) + 1e-12
    assert 1 - 1e-12 <= measures.load_balancing(counts, counts) <= len(counts) + 1e-9
    # With p = f the value is 1 + CV².
    assert measures.load_balancing(counts, counts) == pytest.approx(1 + measures.variation(counts) ** 2)


def test_load_balancing_is_the_losss_value() -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(6), 40)
    ids = np.argsort(-probabilities, axis=1)[:, :2]
    counts = np.bincount(ids.reshape(-1), minlength=6)
    expected = compute_load_balancing_loss(probabilities, ids, 6)
    assert measures.load_balancing(counts, probabilities.sum(0)) == pytest.approx(expected)


def test_covered() -> None:
    ranked_by, measured = np.array([5, 1, 3]), np.array([2, 6, 2])
    result = measures.covered(ranked_by, measured, np.array([0, 1, 1.5, 2, 3]))
    np.testing.assert_allclose(result, [0, 0.2, 0.3, 0.4, 1.0])


@given(counts_lists)
def test_no_other_ranking_covers_more_than_its_own(values: list[int]) -> None:
    counts = np.array(values)
    top = np.arange(len(counts) + 1)
    own = measures.covered(counts, counts, top)
    assert (own >= measures.covered(np.arange(len(counts)), counts, top) - 1e-12).all()
    assert (np.diff(own) >= -1e-12).all()


def test_experts_for() -> None:
    counts = np.array([50, 30, 10, 10, 0])
    assert [measures.experts_for(counts, share) for share in (0.5, 0.51, 0.8, 0.95, 1.0)] == [1, 2, 2, 4, 4]
    assert measures.experts_for(np.zeros(3), 0.5) == 0


def test_jensen_shannon() -> None:
    assert measures.jensen_shannon(np.array([1, 0]), np.array([0, 7])) == pytest.approx(1.0)
    assert measures.jensen_shannon(np.array([1, 2]), np.array([10, 20])) == pytest.approx(0.0, abs=1e-15)
    assert np.isnan(measures.jensen_shannon(np.zeros(2), np.array([1, 1])))


def test_jensen_shannon_noise_is_what_sampling_gives() -> None:
    random = np.random.default_rng(0)
    share = random.dirichlet(np.ones(20))
    samples = [random.multinomial(2000, share, 400), random.multinomial(1000, share, 400)]
    measured = measures.jensen_shannon(*samples)
    expected = measures.jensen_shannon_noise(*samples)
    standard_error = measured.std() / math.sqrt(len(measured))
    # To first order: the next is of the order of S/n, 2 %, of it.
    assert abs(measured.mean() - expected.mean()) < 4 * standard_error + 0.04 * expected.mean()


def test_mutual_information() -> None:
    assert measures.mutual_information(np.outer([1, 3], [2, 5])) == pytest.approx(0.0, abs=1e-12)
    assert measures.mutual_information(4 * np.eye(8)) == pytest.approx(3.0)
    assert math.isnan(measures.mutual_information(np.zeros((2, 2))))


def test_median_of_bins() -> None:
    edges = 2 ** np.arange(5)
    assert measures.median_of_bins(edges, np.array([9, 1, 0, 0, 0])) == 1.0
    assert measures.median_of_bins(edges, np.array([0, 0, 10, 0, 0])) == 6.0
    assert math.isnan(measures.median_of_bins(edges, np.zeros(5)))


def test_absence_tells() -> None:
    assert measures.absence_tells(np.array([20, 20, 0]))
    assert not measures.absence_tells(np.array([9, 9, 0]))  # 6 at balance
    assert not measures.absence_tells(np.array([40, 1, 0]))  # one was used once: another may be as rare
