"""docs/models.md from the recorded results."""

from __future__ import annotations

from pathlib import Path

from tools.model_table.architectures import ARCHITECTURES, Architecture
from tools.model_table.comparison import TOLERANCE
from tools.model_table.results import Result

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"

_INTRODUCTION = """# Architectures

<!-- Written by `python -m tools.model_table` from tools/model_table/results.json: change those, not this page. -->

{passing} of the {total} architectures with experts in transformers {transformers} export as whole decoders: tokens,
attention mask and cache in, logits and cache out, any batch and lengths, rows padded on the left or not.

How that was found: a tiny random model of each (two layers, eight experts, two of them chosen) is exported with MXFP4
experts and run in ONNX Runtime {onnxruntime} with the plugin. Its logits are compared with those of Torch {torch},
whose experts hold the values of the same FP4 codes: a prompt of 11 tokens alone, a batch of three padded on the left,
two more tokens of that batch through the cache. The difference is the largest of the three, |ONNX - Torch| / |Torch|
(Frobenius norms); a model passes up to {tolerance:.0e}.

*Router*: the family that became a `MoERouter` node, or "ordinary operators" where the model's own arithmetic is kept.
*Nodes*: of the whole graph, and of these the MoE operators. *Cache*: what a layer keeps from one token to the next.
Of multimodal models it is the text model.

| architecture | model type | router | nodes | MoE nodes | cache | difference |
| --- | --- | --- | --- | --- | --- | --- |
"""

_FAILURES = """
## What does not export

| architecture | model type | why |
| --- | --- | --- |
"""


def write_page(results: dict[str, Result]) -> str:
    """The page's text."""
    passing = {name: result for name, result in results.items() if result.passed and name in ARCHITECTURES}
    versions = next(iter(results.values())).versions if results else {}
    rows = [_row(ARCHITECTURES[name], result) for name, result in sorted(passing.items(), key=_title)]
    failing = [architecture for name, architecture in ARCHITECTURES.items() if name not in passing]
    reasons = [
        f"| {architecture.name} | {architecture.model_type} | {_reason(architecture, results)} |"
        for architecture in sorted(failing, key=lambda architecture: architecture.name.lower())
    ]
    head = _INTRODUCTION.format(passing=len(passing), total=len(ARCHITECTURES), tolerance=TOLERANCE, **versions)
    return head + "\n".join(rows) + "\n" + _FAILURES + "\n".join(reasons) + "\n"


def _title(item: tuple[str, Result]) -> str:
    return ARCHITECTURES[item[0]].name.lower()


def _row(architecture: Architecture, result: Result) -> str:
    comparison = result.comparison
    assert comparison is not None
    routers = "; ".join("ordinary operators" if "ordinary" in name else name for name in comparison.routers)
    cells = [
        architecture.name,
        architecture.model_type,
        routers,
        str(comparison.nodes),
        str(comparison.moe_nodes),
        ", ".join(name.replace("_", " ") for name in comparison.cache),
        f"{comparison.worst:.1e}",
    ]
    return f"| {' | '.join(cells)} |"


def _reason(architecture: Architecture, results: dict[str, Result]) -> str:
    if architecture.excluded:
        return architecture.excluded
    result = results.get(architecture.model_type)
    if result is None:
        return "not run yet"
    if result.comparison is not None:
        return f"differs from Torch by {result.comparison.worst:.1e}"
    return architecture.obstacle or _summary(result.reason).replace("|", "\\|")[:300]


def _summary(reason: str) -> str:
    """A line of an error: of torch.export's pages, what it was that failed."""
    _, _, summary = reason.partition("## Exception summary")
    return " ".join((summary.partition("(Refer to")[0] or reason.partition("\n")[0]).split())
