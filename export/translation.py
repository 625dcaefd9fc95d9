"""torch.ops.onnx_moe.* to nodes of the domain onnx_moe."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import values

from onnx_moe.operators import DOMAIN, EXPERT_GEMM, ROUTER, VERSION, get_operator, register_schemas

_PYTHON_TYPES: dict[str, type] = {"int": int, "float": float, "string": str}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What torch.onnx.export takes as custom_translation_table."""
    register_schemas()  # the opset looks its operators up there
    return {
        torch.ops.onnx_moe.router.default: _translation(ROUTER),
        torch.ops.onnx_moe.expert_gemm_fp4.default: _translation(EXPERT_GEMM),
    }


def _translation(operator: str) -> Callable[..., Any]:
    """A function of the operator's inputs and attributes that makes its node.

    Torch's exporter reads which argument is an attribute, and of what type, from the signature: it is made from the
    operator's definition.
    """
    definition = get_operator(operator)
    defaults = {attribute.name: attribute.default for attribute in definition.attributes}
    opset = values.Opset(DOMAIN, VERSION)

    def translate(*arguments: Any, **keywords: Any) -> Any:
        given = translate.__signature__.bind(*arguments, **keywords).arguments  # type: ignore[attr-defined]
        inputs = [given.get(value.name) for value in definition.inputs]
        # A node carries what says something: attributes that differ from their defaults.
        attributes = {name: given[name] for name in defaults if name in given and given[name] != defaults[name]}
        return opset[operator](*inputs, **attributes)

    annotations: dict[str, Any] = dict.fromkeys((value.name for value in definition.inputs), Any)
    annotations |= {attribute.name: _PYTHON_TYPES[attribute.type] for attribute in definition.attributes}
    translate.__annotations__ = annotations
    translate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=defaults.get(name),
                annotation=annotation,
            )
            for name, annotation in annotations.items()
        ]
    )
    return translate
