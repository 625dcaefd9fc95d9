"""Writes the C++ tables of the operators from definitions.json: python generate_definitions.py JSON OUTPUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ELEMENT_TYPES = {
    "float": "kFloat",
    "float16": "kFloat16",
    "bfloat16": "kBFloat16",
    "int32": "kInt32",
    "uint8": "kUint8",
}


def text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def type_list(names: list[str]) -> str:
    return "{" + ", ".join(f"ort::{ELEMENT_TYPES[name]}" for name in names) + "}"


def tensor(definition: dict[str, Any], types: dict[str, list[str]]) -> str:
    kind = definition["type"]
    optional = str(definition.get("optional", False)).lower()
    return f"{{{text(definition['name'])}, {text(kind)}, {type_list(types[kind])}, {optional}}}"


def attribute(definition: dict[str, Any]) -> str:
    kind = definition["type"]
    default = definition.get("default")
    infinity = "std::numeric_limits<double>::infinity()"
    fields = [
        text(definition["name"]),
        f"AttributeType::k{kind.capitalize()}",
        str(definition.get("required", False)).lower(),
        text(default) if kind == "string" else '""',
        repr(float(default)) if kind != "string" and default is not None else "0.0",
        "{" + ", ".join(text(choice) for choice in definition.get("choices", [])) + "}",
        repr(float(definition["minimum"])) if "minimum" in definition else f"-{infinity}",
        repr(float(definition["maximum"])) if "maximum" in definition else infinity,
    ]
    return "{" + ", ".join(fields) + "}"


def operator(definition: dict[str, Any], types: dict[str, list[str]], others: dict[str, dict[str, Any]]) -> str:
    def rows(items: list[str]) -> str:
        return "{" + ",\n      ".join(items) + "}"

    inputs = rows([tensor(item, types) for item in definition["inputs"]])
    outputs = rows([tensor(item, types) for item in definition["outputs"]])
    borrowed = [item for name in definition.get("attributes_of", []) for item in others[name]["attributes"]]
    attributes = rows([attribute(item) for item in [*borrowed, *definition["attributes"]]])
    return f"{{{text(definition['name'])},\n     {inputs},\n     {outputs},\n     {attributes}}}"


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    definition = json.loads(source.read_text(encoding="utf-8"))
    by_name = {item["name"]: item for item in definition["operators"]}
    operators = ",\n    ".join(operator(item, definition["types"], by_name) for item in definition["operators"])
    target.write_text(
        f"// Made from {source.name} by {Path(__file__).name}; do not edit.\n"
        f"const char* const kDomain = {text(definition['domain'])};\n"
        f"const int kDomainVersion = {definition['version']};\n"
        f"const std::vector<OperatorDefinition> kOperators = {{\n    {operators}}};\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
