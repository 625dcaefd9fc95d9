"""The profile as JSON values: docs/routing.md describes every key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_moe.routing.document import cache, load, relations, time
from onnx_moe.routing.document.values import plain
from onnx_moe.routing.trace import PHASES

if TYPE_CHECKING:
    from onnx_moe.routing.profile import RoutingProfile

FORMAT, VERSION = "onnx-moe routing profile", 2


def document(profile: RoutingProfile) -> dict[str, Any]:
    """The profile's JSON document."""
    model, counts = profile.model, profile.counts
    sections = {
        "format": FORMAT,
        "version": VERSION,
        "model": {
            "name": model.name,
            "num_layers": model.num_layers,
            "num_experts": model.num_experts,
            "top_k": model.top_k,
            "layer_names": list(model.layer_names),
            "expert_bytes": model.expert_bytes,
        },
        "recorded": {
            "source": profile.source,
            "created": profile.created,
            "calls": dict(zip(PHASES, counts["calls"].max(1), strict=True)),
            "tokens": dict(zip(PHASES, counts["tokens"].max(1), strict=True)),
            "requests": counts["requests"][0],
            "dropped_calls": profile.dropped_calls,
            "facts": profile.facts,
            "notes": profile.notes,
            "has_weights": counts.has_weights,
            "has_all_weights": counts.has_all_weights,
            "has_router_probabilities": counts.has_probabilities,
        },
        "summary": load.summary(profile),
        "load_balance": load.load_balance(profile),
        "cooccurrence": relations.cooccurrence(profile),
        "predictability": relations.predictability(profile),
        "per_layer": load.per_layer(profile),
        "maps": load.maps(profile),
        "concentration": load.concentration(profile),
        "balance": time.balance(profile),
        "time": time.time_structure(profile),
        "transitions": relations.transitions(profile),
        "predictors": relations.predictors(profile),
        "drift": time.drift(profile),
        "prompt_classes": time.prompt_classes(profile),
        "cache": cache.cache(profile),
    }
    result: dict[str, Any] = plain(sections)
    return result
