"""Measures of how experts are used: the formulas, on arrays of counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Uses that an expert must be expected to have, at balance, before its absence says anything: an expert with an
#: expected count of x is unseen with probability e^−x (4.5e-5 at 10).
ENOUGH_USES = 10.0


def absence_tells(counts: Array) -> bool:
    """Whether an expert without any use in counts [E] may be called dead rather than rare: the mean is at least
    ENOUGH_USES, and none was used only once. By Good and Turing, the experts used once have together the share of uses
    that the unseen ones may be expected to have.
    """
    return bool(counts.mean() >= ENOUGH_USES and not (counts == 1).any())


def entropy(counts: Array) -> Array:
    """Entropy of counts [..., E] over ln E: 1 where all are even, 0 where one has all; NaN without any."""
    total = counts.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = counts / total
        terms = np.where(share > 0, share * np.log(share), 0.0)
    if counts.shape[-1] == 1:
        return np.where(total[..., 0] > 0, 1.0, np.nan)
    result: Array = np.where(total[..., 0] > 0, -terms.sum(-1) / math.log(counts.shape[-1]), np.nan)
    return np.where(result == 0, 0.0, result)  # no −0


def gini(counts: Array) -> Array:
    """Gini coefficient of counts [..., E] over all experts: 0 where all are even; NaN without any."""
    size = counts.shape[-1]
    ordered = np.sort(counts, -1).astype(np.float64)
    ranks = np.arange(1, size + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Array = (2 * (ordered * ranks).sum(-1) / ordered.sum(-1) - (size + 1)) / size
    return result


def variation(counts: Array, active_only: bool = False) -> float:
    """Standard deviation over mean of counts [E]; of the non-zero ones alone if `active_only`. NaN without any."""
    chosen = counts[counts > 0] if active_only else counts
    return float(chosen.std() / chosen.mean()) if chosen.any() else math.nan


def load_balancing(counts: Array, probabilities: Array) -> Array:
    """E · Σ_e f_e · p_e for counts and probability masses [..., E], each normalised: 1 at balance, at most E.

    The value of `onnx_moe.dispatch.compute_load_balancing_loss`; NaN where either has no mass.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = counts / counts.sum(-1, keepdims=True)
        mean = probabilities / probabilities.sum(-1, keepdims=True)
    result: Array = counts.shape[-1] * (fraction * mean).sum(-1)
    return result


def covered(ranked_by: Array, measured: Array, top: Array) -> Array:
    """Share of `measured` [N] on the `top` [G] entries that come first in `ranked_by` [N], parts of an entry linear."""
    order = np.argsort(-ranked_by, kind="stable")
    total = measured.sum()
    if total == 0:
        return np.full(len(top), np.nan)
    cumulated = np.concatenate([[0.0], np.cumsum(measured[order], dtype=np.float64)]) / total
    share: Array = np.interp(top, np.arange(len(cumulated)), cumulated)
    return share


def experts_for(counts: Array, share: float) -> int:
    """How many of the most used experts of counts [E] have at least `share` of all uses."""
    cumulated = np.cumsum(np.sort(counts)[::-1])
    return int(np.searchsorted(cumulated, share * cumulated[-1] * (1 - 1e-12)) + 1) if cumulated[-1] else 0


def jensen_shannon(first: Array, second: Array) -> Array:
    """Jensen-Shannon divergence in bits of counts [..., E]: 0 for equal shares, 1 for disjoint ones."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p, q = (counts / counts.sum(-1, keepdims=True) for counts in (first, second))
        middle = (p + q) / 2
        terms = (np.where(part > 0, part * np.log2(part / middle), 0.0) for part in (p, q))
        result: Array = sum(term.sum(-1) for term in terms) / 2
    empty = (first.sum(-1) == 0) | (second.sum(-1) == 0)
    return np.where(empty, np.nan, np.maximum(result, 0.0))


def jensen_shannon_noise(first: Array, second: Array) -> Array:
    """What `jensen_shannon` gives on average for independent samples of one distribution, to first order:
    (S − 1) / (8 ln 2) · (1/n + 1/m), with S the experts that occur, n and m the sizes.
    """
    support = ((first + second) > 0).sum(-1)
    with np.errstate(divide="ignore"):
        result: Array = (support - 1) / (8 * math.log(2)) * (1 / first.sum(-1) + 1 / second.sum(-1))
    return result


def mutual_information(joint: Array) -> float:
    """Mutual information in bits of the two indices of a table of counts; NaN for an empty one."""
    total = joint.sum()
    if total == 0:
        return math.nan
    p = joint / total
    product = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    some = p > 0
    return float((p[some] * np.log2(p[some] / product[some])).sum())


def median_of_bins(edges: Array, counts: Array) -> float:
    """The median of values that are counted in bins [edges[b], edges[b + 1]), linear inside a bin; NaN without any."""
    total = counts.sum()
    if total == 0:
        return math.nan
    cumulated = np.cumsum(counts)
    bin_index = int(np.searchsorted(cumulated, total / 2))
    low, width = float(edges[bin_index]), float(edges[bin_index])  # a bin is as wide as its lower edge
    if width == 1:
        return low
    before = cumulated[bin_index] - counts[bin_index]
    return low + width * float((total / 2 - before) / counts[bin_index])
