"""What a profile means for somebody who runs the model: one paragraph, and the figures that it stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_moe.routing import measures
from onnx_moe.routing.hit_rates import HitRateCurves

if TYPE_CHECKING:
    from onnx_moe.routing.profile import RoutingProfile

#: The policy that the plugin takes by default.
_POLICY = "decayed-lfu"


def advice(profile: RoutingProfile) -> dict[str, Any]:
    """paragraph: in plain words. facts: the figures by name."""
    sentences: list[str] = []
    facts: dict[str, Any] = {}
    for part in (_amount, _memory, _skew, _drift, _prefetch, _unused):
        part(profile, sentences, facts)
    return {"paragraph": " ".join(sentences), "facts": facts}


def _amount(profile: RoutingProfile, sentences: list[str], facts: dict[str, Any]) -> None:
    tokens = int(profile.counts["tokens"].sum(0).max())
    uses = tokens * profile.model.top_k / profile.model.num_experts
    facts |= {"tokens": tokens, "expected_uses": uses}
    if uses < measures.ENOUGH_USES:
        needed = int(np.ceil(measures.ENOUGH_USES * profile.model.num_experts / profile.model.top_k))
        sentences.append(
            f"This is a first look: {tokens} tokens are too few to tell an unused expert from an unlucky one "
            f"({needed} would do)."
        )
    if profile.dropped_calls:
        facts["dropped_calls"] = profile.dropped_calls
        sentences.append(
            f"The recording had reached its limit and lacks {profile.dropped_calls} calls (onnx_moe.trace_limit)."
        )


def _memory(profile: RoutingProfile, sentences: list[str], facts: dict[str, Any]) -> None:
    curves = profile.hit_rates
    if curves is None:
        sentences.append("Only counts are known, so nothing can be said about caches: record with onnx_moe.trace = full.")
        return
    bank, cycle = profile.model.num_layers * profile.model.num_experts, profile.model.num_layers * profile.model.top_k
    reached = []
    for target in (0.8, 0.9, 0.95):
        capacity = curves.curve(_POLICY).least_capacity(target)
        facts[f"experts_for_{target:.0%}".replace("%", "_percent")] = capacity
        if capacity is not None:
            reached.append(f"{_size(profile, capacity)} ({capacity / bank:.0%}) for {target:.0%}")
    facts["token_cycle_experts"] = cycle
    if reached:
        sentences.append(f"Of the experts, keep in memory {', '.join(reached)} of the uses.")
    else:
        sentences.append(
            "Even with all experts kept, most first uses in so short a run must be read: no budget reaches 80 % hits here."
        )
    sentences.append(f"Never less than {_size(profile, cycle)}, what a single token goes through.")
    sentences += _policy(curves)


def _policy(curves: HitRateCurves) -> list[str]:
    """Whether the choice of a policy matters, at the size nearest to a quarter of the largest."""
    lru = curves.curve("lru")
    at = int(np.abs(lru.capacity - lru.capacity[-1] / 4).argmin())
    rates = {name: float(curves.curve(name).hit_rate[at]) for name in ("lru", _POLICY, "static", "belady")}
    share = lru.capacity[at] / lru.capacity[-1]
    gain = 100 * (rates[_POLICY] - rates["lru"])
    sentences = [
        f"With {share:.0%} of them, decayed LFU hits {rates[_POLICY]:.0%}, LRU {rates['lru']:.0%}, and no policy could "
        f"more than {rates['belady']:.0%}."
    ]
    if abs(gain) < 1:
        sentences.append("The policy hardly matters; the budget does.")
    if rates["static"] > max(rates["lru"], rates[_POLICY]) + 0.01:
        sentences.append(f"Pinning the most used experts would do better: {rates['static']:.0%}.")
    return sentences


def _size(profile: RoutingProfile, experts: int) -> str:
    if profile.model.expert_bytes is None:
        return f"{experts} experts"
    size = experts * profile.model.expert_bytes
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _skew(profile: RoutingProfile, sentences: list[str], facts: dict[str, Any]) -> None:
    layers = [layer for layer in profile.layers if layer.total_tokens]
    if not layers:
        return
    entropies = np.array([layer.entropy for layer in layers])
    facts["mean_entropy"] = float(entropies.mean())
    kind = "flat" if entropies.mean() > 0.95 else "skewed" if entropies.mean() > 0.8 else "strongly skewed"
    least = layers[int(entropies.argmin())].layer_idx
    sentences.append(
        f"Use is {kind} (entropy {entropies.mean():.2f} of 1), most in layer {least} ({entropies.min():.2f})."
    )


def _drift(profile: RoutingProfile, sentences: list[str], facts: dict[str, Any]) -> None:
    from onnx_moe.routing.document.load import halves_of

    for phase in (1, 0):
        first, second = halves_of(profile, phase)
        if not first.any() or not second.any():
            continue
        moved = float(np.nanmean(measures.jensen_shannon(first, second)))
        noise = float(np.nanmean(measures.jensen_shannon_noise(first, second)))
        facts |= {"drift_bits": moved, "drift_noise_bits": noise}
        if moved > 3 * noise and moved > 0.02:
            sentences.append(
                f"The second half of the run uses other experts than the first ({moved:.2f} bits apart): do not pin by "
                "a short run, let the cache follow."
            )
        return


def _prefetch(profile: RoutingProfile, sentences: list[str], facts: dict[str, Any]) -> None:
    recall = {score.predictor: score.recall for score in profile.scores if score.budget == profile.model.top_k}
    if not recall:
        return
    best = max(recall, key=lambda name: recall[name])
    facts |= {"best_predictor": best, "best_recall": recall[best]}
    sentences.append(f"Of a token's experts, {recall[best]:.0%} can be foretold from ids alone (best: {best}).")


def _unused(profile: RoutingProfile, sentences: list[str], facts: dict[str, Any]) -> None:
    dead = sum(len(layer.dead_experts) for layer in profile.layers)
    facts["dead_experts"] = dead
    if dead:
        sentences.append(
            f"{dead} experts never ran although {measures.ENOUGH_USES:.0f} uses or more were due at balance: on this kind of "
            "text they need no memory; that they are useless everywhere does not follow."
        )
