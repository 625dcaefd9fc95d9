"""Comparing outputs with what is right."""

from __future__ import annotations

import numpy as np

from .cases import RouterCase
from .data import Array, RouterInputs
from .oracle import Expected, expected_expert_weights, expected_logits, selection_keys

#: Relative Frobenius error that the type of the output allows, and the accuracy_level: the contract of the operators,
#: but for levels 2 and 3, which may have 1e-3 and 8e-3: all of ours keep 16 bits (2e-5).
FROBENIUS = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}
LEVEL_FROBENIUS = {0: 1e-6, 1: 1e-6, 2: 1e-4, 3: 1e-4, 4: 1e-2}

#: Relative error of rounding to the type, and half of its smallest number.
_ROUNDING = {
    "float32": (2.0**-24, 2.0**-150),
    "float16": (2.0**-11, 2.0**-25),
    "bfloat16": (2.0**-8, 2.0**-134),
}


def check_values(
    actual: Array, expected: Expected, dtype: str, frobenius: float, *, flushes_subnormals: bool = False
) -> None:
    """NaN exactly where expected, each element as near as the arithmetic allows, the whole as the contract asks.

    flushes_subnormals: of a device on which a float below 2^-126 may become 0.
    """
    assert actual.shape == expected.value.shape
    actual = actual.astype(np.float64)
    invalid = np.isnan(expected.value)
    np.testing.assert_array_equal(np.isnan(actual), invalid, err_msg="NaN elsewhere than expected")
    difference = np.abs(np.where(invalid, 0, actual - expected.value))
    value = np.where(invalid, 0, np.abs(expected.value))

    if flushes_subnormals:
        difference[(actual == 0) & (value < 2.0**-126)] = 0
    relative, smallest = _ROUNDING[dtype]
    allowed = 1.01 * (np.where(invalid, 0, expected.error) + relative * value) + smallest
    worst = np.argmax(difference / allowed) if difference.size else None
    assert worst is None or difference.flat[worst] <= allowed.flat[worst], (
        f"element {np.unravel_index(worst, actual.shape)} is {actual.flat[worst]}, not "
        f"{expected.value.flat[worst]}: off by {difference.flat[worst] / allowed.flat[worst]:.3g} times what "
        "the arithmetic allows"
    )
    assert np.linalg.norm(difference) <= frobenius * np.linalg.norm(value)


def check_router(case: RouterCase, inputs: RouterInputs, outputs: dict[str, Array]) -> None:
    """The three outputs of a router."""
    logits = outputs["router_logits"].astype(np.float64)
    expected = expected_logits(case, inputs)
    finite = np.isfinite(expected.value)
    np.testing.assert_array_equal(logits[~finite], expected.value[~finite])
    assert np.all(np.abs(logits[finite] - expected.value[finite]) <= 1.01 * expected.error[finite])

    slots = case.top_k + case.num_shared_experts
    expert_ids = outputs["expert_ids"].reshape(-1, slots).astype(np.int64)
    expert_weights = outputs["expert_weights"].reshape(-1, slots).astype(np.float64)
    shared_ids = np.arange(case.num_experts, case.num_experts + case.num_shared_experts)
    assert np.all(expert_ids[:, case.top_k :] == shared_ids)
    assert np.all(expert_weights[:, case.top_k :] == 1)

    logits = logits.reshape(-1, case.num_experts)
    keys = selection_keys(case, inputs, expected.value).reshape(-1, case.num_experts)
    invalid = np.isnan(keys).any(-1)
    assert np.all(expert_ids[invalid, : case.top_k] == np.arange(case.top_k))
    assert np.isnan(expert_weights[invalid, : case.top_k]).all()

    valid = ~invalid
    chosen = expert_ids[valid, : case.top_k]
    logit_error = expected.error.reshape(-1, case.num_experts)[valid].max(-1, initial=0)
    check_selection(case, chosen, keys[valid], logit_error)
    check_expert_weights(case, expert_weights[valid, : case.top_k], logits[valid], chosen)


@np.errstate(invalid="ignore")
def check_selection(case: RouterCase, chosen: Array, keys: Array, logit_error: Array) -> None:
    """`chosen` [T, top_k] are the best experts by `keys` [T, E], best first.

    Keys that differ by less than 1e-6, or than the error of the logits (scoring has a slope of at most 1),
    may have changed places; keys that are equal must be in the order of the ids.
    """
    tolerance = (logit_error + 1e-6 * np.maximum(1, np.abs(keys).max(-1, initial=0, where=np.isfinite(keys))))[:, None]
    assert np.all((chosen >= 0) & (chosen < case.num_experts))
    assert all(len(set(row)) == case.top_k for row in chosen.tolist())
    must, may = _groups(case, keys, tolerance)
    of_chosen = np.take_along_axis(np.where(may, keys, -np.inf), chosen, -1)
    _check_order(of_chosen[:, :-1], of_chosen[:, 1:], chosen[:, :-1] < chosen[:, 1:], tolerance)
    is_chosen = np.zeros(keys.shape, bool)
    np.put_along_axis(is_chosen, chosen, True, -1)
    last, last_id = of_chosen[:, -1:], chosen[:, -1:]
    left = np.where(must & ~is_chosen, keys, -np.inf)
    _check_order(
        np.broadcast_to(last, left.shape),
        left,
        (last_id < np.arange(case.num_experts)) | is_chosen,
        tolerance,
    )


def _check_order(better: Array, worse: Array, ids_ascend: Array, tolerance: Array) -> None:
    assert np.all(better >= worse - tolerance), "an expert with a lower key was preferred"
    assert np.all((better != worse) | ids_ascend | np.isneginf(worse)), "a tie went to a higher id"


def _groups(case: RouterCase, keys: Array, tolerance: Array) -> tuple[Array, Array]:
    """For each expert [T, E]: whether its group must be kept, and whether it may be."""
    groups = keys.reshape(len(keys), case.num_groups, case.num_experts // case.num_groups)
    best = -np.sort(-groups, axis=-1)
    scores = best[..., 0] if case.group_scoring == "max" else best[..., :2].sum(-1)
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-scores, axis=-1, kind="stable")
    kept = np.zeros(scores.shape, bool)
    np.put_along_axis(kept, order[:, : case.top_k_groups], True, -1)
    lowest_kept = np.where(kept, scores, np.inf).min(-1, keepdims=True, initial=np.inf)
    highest_left = np.where(kept, -np.inf, scores).max(-1, keepdims=True, initial=-np.inf)
    # Equal scores are decided by the ids; nearly equal ones may go either way.
    uncertain = (lowest_kept != highest_left) & (lowest_kept - highest_left <= 2 * tolerance)
    near = uncertain & (scores <= lowest_kept + 2 * tolerance) & (scores >= highest_left - 2 * tolerance)
    size = groups.shape[-1]
    return np.repeat(kept & ~near, size, axis=-1), np.repeat(kept | near, size, axis=-1)


@np.errstate(invalid="ignore")
def check_expert_weights(case: RouterCase, actual: Array, logits: Array, chosen: Array) -> None:
    """Weights against float64 at the implementation's own logits and ids.

    2e-6: a dozen roundings. An exponential of x has the relative error of x itself, which for softmax is that
    of the distance to the largest logit.
    """
    expected = expected_expert_weights(case, logits, chosen)
    spread = np.ptp(np.where(np.isfinite(logits), logits, 0), axis=-1, keepdims=True)
    tolerance = 2e-6 + 2.0**-24 * spread
    near = np.abs(actual - expected) <= tolerance * np.abs(expected) + 2.0**-126
    # An infinite logit gives infinite weights, and NaN where they are normalised.
    assert np.all(near | (actual == expected) | (np.isnan(actual) & np.isnan(expected)))
