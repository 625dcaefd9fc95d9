"""The HTML page: templates, style and scripts of this package put together with the profile's document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onnx_moe.routing.report import findings
from onnx_moe.routing.report.advice import advice
from onnx_moe.routing.report.numbers import byte_size, counted, percent, unbroken
from onnx_moe.routing.report.reading import POLICIES, Document, online_policy, phase_of, scores

_SCRIPTS = tuple(
    f"{name}.js" for name in ("dom", "reading", "chart", "heatmap", "cache", "experts", "time", "relations", "main")
)

#: Where the page opens when nothing is said: a quarter of the experts, and the bytes a second of a common NVMe disk.
_SHARE, _BANDWIDTH = 0.25, 2e9

_BASES = {
    "router_probabilities": "the router’s mean probability of each expert",
    "selected_weights": "the mean gate weight, because probabilities of the others are not recorded",
    "counts": "the share of selections again, because weights are not recorded",
}


@dataclass(frozen=True)
class _Section:
    id: str
    short: str
    title: str
    known: Callable[[Document], Any]
    finding: Callable[[Document], str]


def _known(section: str) -> Callable[[Document], Any]:
    """Whether a profile has a section for prefill or decode."""
    return lambda document: phase_of(document[section])


_SECTIONS = (
    _Section("cache", "Memory", "How much memory the experts need", online_policy, findings.cache),
    _Section("experts", "Experts", "Which experts are chosen", _known("maps"), findings.experts),
    _Section("concentration", "Skew", "How few experts do how much", _known("concentration"), findings.concentration),
    _Section("layers", "Layers", "How even each layer is", lambda document: document["per_layer"], findings.layers),
    _Section("time", "Time", "From token to token", _known("time"), findings.time),
    _Section("relations", "Relations", "What goes with what", findings.relations, findings.relations),
    _Section("predictors", "Predictors", "What could be read ahead", scores, findings.predictors),
    _Section("balance", "Balance", "Load balancing over the run", _known("balance"), findings.balance),
)


def render_page(
    document: Document, *, budget: float | None = None, bandwidth: float | None = None, compute_seconds: float = 0.0
) -> str:
    """The page of a profile's document, as HTML. Sections that the profile knows nothing about are left out.

    budget: bytes for experts, bandwidth: bytes a second of the disk, compute_seconds: of a token with all experts
    there, at which the page opens.
    """
    return (
        _environment()
        .get_template("report.html")
        .render(
            profile=document,
            advice=advice(document),
            key_figures=[{"value": value, "name": name} for value, name in findings.key_figures(document)],
            facts=_facts(document),
            warnings=_warnings(document),
            sections=[
                {"id": one.id, "short": one.short, "title": one.title, "finding": one.finding(document)}
                for one in _SECTIONS
                if one.known(document)
            ],
            phases=[phase for phase in ("decode", "prefill", "all") if document["maps"].get(phase)],
            drift=phase_of(document.get("drift")),
            transitions=any((document.get("transitions") or {}).get("per_layer", [])),
            policies=POLICIES,
            whole_run=findings.whole_run(document) if online_policy(document) else None,
            basis=_basis(document),
            start_percent=_start_percent(document, budget),
            bandwidth=(bandwidth or _BANDWIDTH) / 1e9,
            compute_milliseconds=1e3 * compute_seconds,
            scripts=_SCRIPTS,
            version=version("onnx-moe"),
        )
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    loader = PackageLoader("onnx_moe.routing.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # `tojson` escapes <, > and & as \u003c …, so that no string of a profile can end the script element that holds it.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False, "sort_keys": False}
    environment.filters.update(percent=percent, bytes=byte_size, unbroken=unbroken)
    environment.globals["source"] = lambda name: Markup(loader.get_source(environment, name)[0])
    return environment


def _start_percent(document: Document, budget: float | None) -> int:
    total = (document.get("cache") or {}).get("bank_bytes")
    share = budget / total if budget and total else _SHARE
    return min(100, max(1, int(100 * share)))


def _facts(document: Document) -> list[tuple[str, str]]:
    model, recorded = document["model"], document["recorded"]
    tokens = recorded["tokens"]
    facts = [
        ("MoE layers", f"{model['num_layers']}"),
        ("Experts", f"{model['num_experts']}, {model['top_k']} a token"),
        ("Prefill tokens", f"{tokens['prefill']:,}"),
        ("Decode tokens", f"{tokens['decode']:,}"),
        ("Requests", f"{recorded['requests']:,}"),
        ("Source", recorded["source"]),
        *((name[:1].upper() + name[1:], value) for name, value in recorded["facts"].items()),
        ("Recorded", recorded["created"][:16].replace("T", " ")),
    ]
    if model["expert_bytes"]:
        total = model["expert_bytes"] * model["num_experts"] * model["num_layers"]
        facts.insert(2, ("Experts’ size", f"{byte_size(model['expert_bytes'])} each, {byte_size(total)} in all"))
    return facts


def _warnings(document: Document) -> list[str]:
    recorded = document["recorded"]
    warnings = list(recorded["notes"])
    if recorded["dropped_calls"]:
        warnings.append(
            f"The recording reached its limit and lacks {counted(recorded['dropped_calls'], 'call')}: "
            "figures are of the part that it has."
        )
    if not recorded["has_weights"]:
        warnings.append("The recording has no gate weights: there is no gate mass.")
    elif not recorded["has_all_weights"]:
        warnings.append("Some calls of the recording have no gate weights: gate mass is that of the others.")
    return warnings


def _basis(document: Document) -> str:
    phase = phase_of(document["balance"])
    return _BASES[document["balance"][phase]["basis"]] if phase else ""
