"""What torch.onnx.export is called with: a module, or the decoder around it, example inputs and names; and the call."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from onnx_moe.errors import ExportError
from onnx_moe.export.decoder import Decoder, find_decoder, make_decoder
from onnx_moe.export.translation import translation_table

#: Version of the standard operators that exported decoders use: the first one with Attention and RMSNormalization.
DECODER_OPSET = 23
#: That of other modules. From 23 on, onnxscript makes RotaryEmbedding of angles that several rows share, [1, S, D],
#: which ONNX Runtime refuses where there are more rows.
MODULE_OPSET = 21


@dataclass(frozen=True)
class Target:
    """The module to export and how torch.onnx.export is to call it."""

    module: torch.nn.Module
    example: tuple[Any, ...]
    dynamic_shapes: Any
    input_names: Sequence[str] | None
    output_names: Sequence[str] | None

    @property
    def must_reach_every_layer(self) -> bool:
        """Whether a MoE layer that the example does not reach is an error: inputs may be chosen badly. A decoder takes
        tokens alone, and what they do not reach is no part of it.
        """
        return not isinstance(self.module, Decoder)


def make_target(
    module: torch.nn.Module,
    example_inputs: Sequence[Any] | None,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Target:
    """What to export of `module`. Arguments as in `onnx_moe.export`; raises ExportError for those that do not fit."""
    if example_inputs is not None:
        if isinstance(example_inputs, torch.Tensor) or not isinstance(example_inputs, Sequence):
            raise ExportError(
                f"example_inputs is a {type(example_inputs).__name__}: pass a tuple of positional inputs, such as (x,)."
            )
        return Target(module, tuple(example_inputs), dynamic_shapes, input_names, output_names)
    model = find_decoder(module)
    if model is None:
        raise ExportError(
            f"example_inputs is None, but {type(module).__name__} is no causal language model of transformers: pass "
            "a tuple of inputs that run it."
        )
    if dynamic_shapes is not None or input_names is not None or output_names is not None:
        raise ExportError(
            "A decoder's names and dynamic shapes are given: leave out dynamic_shapes, input_names and output_names, "
            "or pass example_inputs."
        )
    with evaluating(module):
        decoder, inputs = make_decoder(model)
    return Target(decoder, inputs.example, inputs.dynamic_shapes, inputs.input_names, inputs.output_names)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every submodule's mode is put back."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, training in modes.items():
            child.training = training


def trace(target: Target, example: tuple[Any, ...], opset: int, optimize: bool = True) -> ir.Model:
    """The graph of `target` on the inputs `example`, with the experts that its module has now.

    optimize: False for a module without weights, which Torch's optimiser fails on. Raises ExportError.
    """
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                target.module.eval(),
                example,
                dynamo=True,
                dynamic_shapes=target.dynamic_shapes,
                input_names=target.input_names,
                output_names=target.output_names,
                custom_translation_table=translation_table(),
                opset_version=opset,
                verbose=False,
                optimize=optimize,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"torch.onnx.export cannot trace {type(target.module).__name__}: {error}") from error
    assert program is not None
    return program.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Torch's exporter says of its own parts: operators of absent packages, deprecations."""
    torch_logger = logging.getLogger("torch.onnx")
    level = torch_logger.level
    torch_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch_logger.setLevel(level)
