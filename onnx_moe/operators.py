"""The one definition of the operators, and what follows from it: attribute checks and ONNX schemas."""

from __future__ import annotations

import functools
import json
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx.defs import OpSchema

from onnx_moe.errors import InvalidAttributeError
from onnx_moe.formats import get_format

DOMAIN = "onnx_moe"
VERSION = 1
ROUTER = "MoERouter"
EXPERT_GEMM = "MoEExpertGemmFP4"
BLOCK = "MoEBlockFP4"

#: Attributes of MoEBlockFP4 that hold for both of its projections.
SHARED_BLOCK_ATTRIBUTES = ("format", "block_size", "weight_layout", "accuracy_level")


@dataclass(frozen=True)
class ValueDefinition:
    """An input or output.

    `types` are ONNX element type names; `shape` names the dimensions, "..." standing for any leading ones.
    """

    name: str
    type: str
    types: tuple[str, ...]
    shape: tuple[str, ...]
    optional: bool
    doc: str


class InputDefinition(ValueDefinition):
    """An input of an operator."""


class OutputDefinition(ValueDefinition):
    """An output of an operator."""


@dataclass(frozen=True)
class AttributeDefinition:
    """An attribute: `type` is "int", "float" or "string"; None where there is no default, choice or bound."""

    name: str
    type: str
    required: bool
    default: int | float | str | None
    choices: tuple[str, ...] | None
    minimum: float | None
    maximum: float | None
    doc: str

    def check(self, operator: str, value: Any) -> int | float | str:
        """`value` in the attribute's type; InvalidAttributeError if it is of another type or out of range."""
        if self.type == "string" and isinstance(value, str):
            return self._check_choice(operator, value)
        if self.type == "int" and isinstance(value, numbers.Integral):
            return self._check_range(operator, int(value))
        if self.type == "float" and isinstance(value, numbers.Real):
            return self._check_range(operator, float(value))
        raise InvalidAttributeError(f"{operator}: {self.name}={value!r} must be of type {self.type}.")

    def _check_choice(self, operator: str, value: str) -> str:
        if self.choices is not None and value not in self.choices:
            legal = ", ".join(repr(choice) for choice in self.choices)
            raise InvalidAttributeError(f"{operator}: {self.name}={value!r} is unknown: use one of {legal}.")
        return value

    def _check_range(self, operator: str, value: int | float) -> int | float:
        if not math.isfinite(value):
            raise InvalidAttributeError(f"{operator}: {self.name}={value} must be a finite number.")
        if self.minimum is not None and value < self.minimum:
            raise InvalidAttributeError(f"{operator}: {self.name}={value} must be at least {self.minimum}.")
        if self.maximum is not None and value > self.maximum:
            raise InvalidAttributeError(f"{operator}: {self.name}={value} must be at most {self.maximum}.")
        return value


@dataclass(frozen=True)
class OperatorDefinition:
    """One operator of the domain."""

    name: str
    doc: str
    inputs: tuple[InputDefinition, ...]
    outputs: tuple[OutputDefinition, ...]
    attributes: tuple[AttributeDefinition, ...]


@dataclass(frozen=True)
class RouterAttributes:
    """The attributes of MoERouter, checked and complete; see `router_attributes`."""

    top_k: int
    scoring: str
    normalize: int
    norm_epsilon: float
    norm_min: float
    scaling_factor: float
    num_groups: int
    top_k_groups: int
    group_scoring: str
    num_shared_experts: int

    def check_num_experts(self, num_experts: int) -> None:
        """InvalidAttributeError if a router of `num_experts` experts cannot have these attributes."""
        if num_experts % self.num_groups:
            raise InvalidAttributeError(
                f"{ROUTER}: num_groups={self.num_groups} does not divide the {num_experts} experts: use a divisor."
            )
        experts_per_group = num_experts // self.num_groups
        if self.num_groups > 1 and self.group_scoring == "top2_sum" and experts_per_group < 2:
            raise InvalidAttributeError(
                f"{ROUTER}: group_scoring='top2_sum' takes groups of at least 2 experts, but num_groups="
                f"{self.num_groups} of {num_experts} experts leaves 1: use group_scoring='max' or fewer "
                "groups."
            )
        candidates = self.top_k_groups * experts_per_group
        if self.top_k > candidates:
            groups = f" in top_k_groups={self.top_k_groups} groups" if self.num_groups > 1 else ""
            raise InvalidAttributeError(
                f"{ROUTER}: top_k={self.top_k} is more than the {candidates} experts{groups}: use at most {candidates}."
            )


@dataclass(frozen=True)
class ExpertGemmAttributes:
    """The attributes of MoEExpertGemmFP4, checked and complete; see `expert_gemm_attributes`."""

    format: str
    block_size: int
    weight_layout: str
    activation: str
    gated: int
    gate_layout: str
    alpha: float
    beta: float
    limit: float
    accuracy_level: int


def validate_attributes(operator: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """`attributes` of `operator` with the defaults filled in.

    Raises InvalidAttributeError for an unknown name, a missing required attribute, a value of the wrong type
    or out of range, and for combinations that no input makes legal or that leave an option without effect.
    """
    definition = get_operator(operator)
    known = {attribute.name: attribute for attribute in definition.attributes}
    for name in attributes:
        if name not in known:
            raise InvalidAttributeError(f"{operator}: attribute {name!r} is unknown: use one of {', '.join(known)}.")
    complete: dict[str, Any] = {}
    for name, attribute in known.items():
        if name in attributes:
            complete[name] = attribute.check(operator, attributes[name])
        elif attribute.required:
            raise InvalidAttributeError(f"{operator}: attribute {name!r} is missing: it has no default.")
        else:
            complete[name] = attribute.default
    if operator in (ROUTER, BLOCK):
        _check_router_combination(operator, complete)
    if operator in (EXPERT_GEMM, BLOCK):
        _check_expert_gemm_combination(operator, complete)
    return complete


def block_parts(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Of MoEBlockFP4's attributes, those of its router, of its first projection and of its second."""

    def pick(names: Iterable[str]) -> dict[str, Any]:
        return {name: attributes[name] for name in names if name in attributes}

    router, gate_up = ([item.name for item in get_operator(name).attributes] for name in (ROUTER, EXPERT_GEMM))
    return pick(router), pick(gate_up), pick(SHARED_BLOCK_ATTRIBUTES)


def router_attributes(attributes: Mapping[str, Any]) -> RouterAttributes:
    """Validated attributes of MoERouter in typed form."""
    return RouterAttributes(**validate_attributes(ROUTER, attributes))


def expert_gemm_attributes(attributes: Mapping[str, Any]) -> ExpertGemmAttributes:
    """Validated attributes of MoEExpertGemmFP4 in typed form; block_size 0 becomes the format's own."""
    complete = validate_attributes(EXPERT_GEMM, attributes)
    complete["block_size"] = get_format(complete["format"]).resolve_block_size(complete["block_size"])
    return ExpertGemmAttributes(**complete)


def _check_router_combination(operator: str, attributes: Mapping[str, Any]) -> None:
    num_groups, top_k_groups = attributes["num_groups"], attributes["top_k_groups"]
    if top_k_groups > num_groups:
        raise InvalidAttributeError(
            f"{operator}: top_k_groups={top_k_groups} is more than num_groups={num_groups}: use at most {num_groups}."
        )


def _check_expert_gemm_combination(operator: str, attributes: Mapping[str, Any]) -> None:
    try:
        get_format(attributes["format"]).resolve_block_size(attributes["block_size"])
    except InvalidAttributeError as error:
        raise InvalidAttributeError(f"{operator}: {error}") from None
    if attributes["alpha"] != 1 and attributes["activation"] != "silu":
        raise InvalidAttributeError(
            f"{operator}: alpha={attributes['alpha']} has no effect with activation="
            f"{attributes['activation']!r}: use activation='silu' or leave alpha at 1."
        )
    if attributes["gate_layout"] == attributes["weight_layout"] == "interleaved":
        raise InvalidAttributeError(
            f"{operator}: weight_layout='interleaved' takes gate_layout='concatenated', not 'interleaved': put the "
            "gate rows first."
        )
    if attributes["gated"]:
        return
    for name, neutral in (("beta", 0.0), ("limit", 0.0), ("gate_layout", "concatenated")):
        if attributes[name] != neutral:
            raise InvalidAttributeError(
                f"{operator}: {name}={attributes[name]!r} has no effect with gated=0: set gated=1 or "
                f"leave {name} at {neutral!r}."
            )


def definitions_path() -> Path:
    """The file that defines the operators: in the installed package, or else in the source tree."""
    here = Path(__file__).resolve().parent
    packaged = here / "operators.json"
    return packaged if packaged.exists() else here.parent / "ops" / "operators" / "definitions.json"


@functools.cache
def load_operators() -> dict[str, OperatorDefinition]:
    """The operators by name."""
    document = json.loads(definitions_path().read_text(encoding="utf-8"))
    entries = {entry["name"]: entry for entry in document["operators"]}
    for entry in entries.values():
        borrowed = [attribute for name in entry.get("attributes_of", []) for attribute in entries[name]["attributes"]]
        entry["attributes"] = [*borrowed, *entry["attributes"]]
    return {name: _parse_operator(entry, document["types"]) for name, entry in entries.items()}


def get_operator(name: str) -> OperatorDefinition:
    """The definition of operator `name`; KeyError for a name that is none of ours."""
    return load_operators()[name]


def _parse_operator(entry: Mapping[str, Any], types: Mapping[str, list[str]]) -> OperatorDefinition:
    def value_fields(value: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "name": value["name"],
            "type": value["type"],
            "types": tuple(types[value["type"]]),
            "shape": tuple(value["shape"]),
            "optional": value.get("optional", False),
            "doc": value["doc"],
        }

    return OperatorDefinition(
        name=entry["name"],
        doc=entry["doc"],
        inputs=tuple(InputDefinition(**value_fields(value)) for value in entry["inputs"]),
        outputs=tuple(OutputDefinition(**value_fields(value)) for value in entry["outputs"]),
        attributes=tuple(_parse_attribute(attribute) for attribute in entry["attributes"]),
    )


def _parse_attribute(entry: Mapping[str, Any]) -> AttributeDefinition:
    return AttributeDefinition(
        name=entry["name"],
        type=entry["type"],
        required=entry.get("required", False),
        default=entry.get("default"),
        choices=tuple(entry["choices"]) if "choices" in entry else None,
        minimum=entry.get("minimum"),
        maximum=entry.get("maximum"),
        doc=entry["doc"],
    )


def register_schemas() -> None:
    """Makes the operators known to onnx (checker, onnxscript); does nothing the second time."""
    for definition in load_operators().values():
        if not onnx.defs.has(definition.name, DOMAIN):
            onnx.defs.register_schema(_schema(definition))


def _schema(definition: OperatorDefinition) -> OpSchema:
    values = (*definition.inputs, *definition.outputs)
    constraints = {value.type: [f"tensor({element})" for element in value.types] for value in values}
    return OpSchema(
        definition.name,
        DOMAIN,
        VERSION,
        doc=definition.doc,
        inputs=[_formal_parameter(value) for value in definition.inputs],
        outputs=[_formal_parameter(value) for value in definition.outputs],
        type_constraints=[(name, types, "") for name, types in constraints.items()],
        attributes=[_schema_attribute(attribute) for attribute in definition.attributes],
    )


def _formal_parameter(value: ValueDefinition) -> OpSchema.FormalParameter:
    option = OpSchema.FormalParameterOption.Optional if value.optional else OpSchema.FormalParameterOption.Single
    return OpSchema.FormalParameter(value.name, value.type, value.doc, param_option=option)


def _schema_attribute(attribute: AttributeDefinition) -> OpSchema.Attribute:
    if attribute.required:
        kind = getattr(OpSchema.AttrType, attribute.type.upper())
        return OpSchema.Attribute(attribute.name, kind, attribute.doc, required=True)
    default = onnx.helper.make_attribute(attribute.name, attribute.default)
    return OpSchema.Attribute(attribute.name, default, attribute.doc)
