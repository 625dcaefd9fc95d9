"""Writes the model card from what the other scripts measured.

python model_card.py --work .train --model onnx_moe/data/tiny-glm
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

_TEMPLATE = Path(__file__).with_name("model_card_template.md")

_LICENSES = {
    "Python packages": "each package's own (mostly BSD, MIT, Apache-2.0)",
    "documentation of Python packages": "each package's own (mostly BSD, MIT, Apache-2.0)",
    "Python standard library": "PSF-2.0",
    "Python language reference (pydoc topics)": "PSF-2.0",
    "Rust documentation": "MIT OR Apache-2.0",
    "manual pages": "free licences of the Debian packages (GPL, LGPL, BSD, MIT, verbatim)",
    "/usr/share/doc": "free licences of the Debian packages",
    "GNU Info manuals": "GFDL",
    "Perl manuals": "Artistic OR GPL",
    "common licences": "verbatim copies of licences",
}


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _quality_rows(evaluation: dict[str, Any]) -> str:
    names = {
        "unigram": "unigram",
        "random_experts": "this model, random experts",
        "bigram": "bigram (same tokenizer and training text)",
        "model": "**this model**",
        "prose": "this model, prose only",
        "code": "this model, code only",
    }
    return "\n".join(
        _row(label, f"{evaluation[key]['perplexity']:.2f}", f"{evaluation[key]['bits_per_byte']:.3f}")
        for key, label in names.items()
    )


def _expert_rows(evaluation: dict[str, Any]) -> str:
    rows = []
    for label, load in (
        ("all", evaluation["expert_load"]),
        ("prose", evaluation["prose"]["expert_load"]),
        ("code", evaluation["code"]["expert_load"]),
    ):
        columns = (load["max_over_mean"], load["min_over_mean"], load["entropy"], load["dead"])
        for layer, (busiest, idlest, entropy, dead) in enumerate(zip(*columns, strict=True), start=1):
            rows.append(_row(label, layer, f"{busiest:.2f}", f"{idlest:.2f}", f"{entropy:.4f}", dead))
    return "\n".join(rows)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def model_card(work: Path, folder: Path) -> str:
    """The text of ``README.md``."""

    def read(path: Path) -> Any:
        return json.loads(path.read_text(encoding="utf-8"))

    evaluation, manifest = read(work / "evaluation.json"), read(work / "manifest.json")
    settings, config = read(work / "settings.json"), read(folder / "config.json")
    last = json.loads((folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return _TEMPLATE.read_text(encoding="utf-8").format(
        parameters=evaluation["parameters"],
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        config=config,
        settings=settings,
        evaluation=evaluation,
        quality=_quality_rows(evaluation),
        experts=_expert_rows(evaluation),
        between=_numbers(evaluation["divergence_prose_code"]),
        prose_halves=_numbers(evaluation["prose"]["divergence_between_halves"]),
        code_halves=_numbers(evaluation["code"]["divergence_between_halves"]),
        generations="\n\n---\n\n".join(map(_indented, evaluation["generations"])),
        tokens=last["tokens"],
        steps=last["step"],
        minutes=last["minutes"],
        scripts=Path(__file__).parent.relative_to(Path(__file__).parents[2]),
        compile=" --compile" if settings["compile"] == "True" else "",
        train_bytes=manifest["bytes"]["train"] / 1e6,
        train_tokens=manifest["tokens"]["train"],
        train_documents=manifest["documents"]["train"],
        epochs=last["tokens"] / manifest["tokens"]["train"],
        sources="\n".join(
            _row(item["kind"], item["source"], _LICENSES[item["source"]], f"{item['bytes'] / 1e6:.2f}")
            for item in manifest["sources"]
        ),
        packages=textwrap.fill(", ".join(manifest["packages"]), 110),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    arguments = parser.parse_args()
    card = model_card(arguments.work, arguments.model)
    (arguments.model / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
