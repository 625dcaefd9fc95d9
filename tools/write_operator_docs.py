"""Writes docs/operators.md from the operators' definition: python tools/write_operator_docs.py [--check]."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnx_moe.operators import DOMAIN, VERSION, AttributeDefinition, OperatorDefinition, ValueDefinition, load_operators

TARGET = Path(__file__).resolve().parents[1] / "docs" / "operators.md"

HEADER = f"""# Operators of the domain `{DOMAIN}`, version {VERSION}

Made from `ops/operators/definitions.json` by `tools/write_operator_docs.py`; edit those.

T is float, float16 or bfloat16. Leading dimensions are free and kept: `[T, H]` and `[B, S, H]` both work, and zero rows
are legal. Arithmetic is in float32 whatever T is; results are rounded to T once, at the end.
"""


def describe_value(value: ValueDefinition) -> str:
    types = value.type if value.type == "T" else " or ".join("T" if name == "T" else name for name in value.types)
    if value.type == "T_or_float":
        types = "T or float"
    optional = " (optional)" if value.optional else ""
    return f"| `{value.name}`{optional} | {types} | `[{', '.join(value.shape)}]` | {value.doc} |"


def describe_attribute(attribute: AttributeDefinition) -> str:
    legal = attribute.type
    if attribute.choices:
        legal = ", ".join(f"`{choice}`" for choice in attribute.choices)
    elif attribute.minimum is not None and attribute.maximum is not None:
        legal = f"{attribute.type}, {attribute.minimum:g} to {attribute.maximum:g}"
    elif attribute.minimum is not None:
        legal = f"{attribute.type} ≥ {attribute.minimum:g}"
    default = "required" if attribute.required else f"`{attribute.default}`"
    return f"| `{attribute.name}` | {legal} | {default} | {attribute.doc} |"


def describe_operator(operator: OperatorDefinition) -> str:
    def table(headings: tuple[str, ...], rows: list[str]) -> str:
        head = f"| {' | '.join(headings)} |\n|{' --- |' * len(headings)}"
        return "\n".join([head, *rows])

    values = ("name", "type", "shape", "meaning")
    return "\n\n".join(
        [
            f"## {operator.name}",
            operator.doc,
            "Inputs:",
            table(values, [describe_value(value) for value in operator.inputs]),
            "Outputs:",
            table(values, [describe_value(value) for value in operator.outputs]),
            "Attributes:",
            table(("name", "values", "default", "meaning"), [describe_attribute(item) for item in operator.attributes]),
        ]
    )


def operator_docs() -> str:
    """The text of docs/operators.md."""
    return (
        "\n".join([HEADER, "\n\n".join(describe_operator(operator) for operator in load_operators().values())]) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the file is not what it should be")
    if not parser.parse_args().check:
        TARGET.write_text(operator_docs(), encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != operator_docs():
        raise SystemExit(f"{TARGET} is out of date: run python tools/write_operator_docs.py")


if __name__ == "__main__":
    main()
