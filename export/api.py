"""`onnx_moe.export`: a Torch module with MoE layers → an ONNX file with FP4 experts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onnx_moe.errors import ExportError
from onnx_moe.export.calibration import calibrate_layers, calibration_runs, few_tokens_note
from onnx_moe.export.calibration_layer import CalibratedLayer
from onnx_moe.export.decoder import find_decoder
from onnx_moe.export.dense import check_dense, quantize_dense
from onnx_moe.export.discovery import MoELayer, find_layers
from onnx_moe.export.experts import Quantization, decoded_experts, experts_buffers, fp4_experts
from onnx_moe.export.exported_layers import ExportedLayer, check_routers, describe_layer
from onnx_moe.export.finish import add_metadata, prepare_folder, save, source_name, tidy
from onnx_moe.export.patching import in_float32
from onnx_moe.export.target import DECODER_OPSET, MODULE_OPSET, Target, evaluating, make_target, trace
from onnx_moe.next_gates import add_next_gates
from onnx_moe.operators import EXPERT_GEMM, validate_attributes


@dataclass(frozen=True)
class ExportReport:
    """What `export` did. Bytes: of the module's parameters and buffers as they were, and of the files written.

    notes: what calibration could not do as it was asked to.
    """

    path: Path
    format: str
    layers: tuple[ExportedLayer, ...]
    module_bytes: int
    model_bytes: int
    notes: tuple[str, ...] = ()


def export(
    module: torch.nn.Module,
    example_inputs: Sequence[Any] | None,
    path: str | os.PathLike[str],
    *,
    format: str = "mxfp4",
    block_size: int = 0,
    scale: str = "mse",
    accuracy_level: int = 0,
    weight_layout: str = "rows",
    dense: str = "float",
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    fold_shared_experts: bool = True,
    router_logits: bool = False,
    next_gates: bool = True,
    functions: bool = True,
    calibrate: str | os.PathLike[str] | Sequence[Sequence[Any]] | None = None,
    opset: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Exports `module` to the ONNX file `path`, its experts in FP4 beside it in `path`.data.

    module: anything that contains MoE layers: experts modules of transformers ≥ 5, `onnx_moe.nn.SparseMoE`, or a class
    made known with `register_adapter`. It is left as it was. A bfloat16 module is exported with bfloat16's values
    in float32 outside the experts, because ONNX Runtime's CPU multiplies no bfloat16.
    example_inputs: positional inputs that reach every MoE layer. None for a causal language model of transformers:
    it is exported as a decoder with inputs input_ids [B, S], attention_mask [B, P + S] and past_key_values.N.key /
    .value, outputs logits and present.N.key / .value, any batch and lengths, padded on the left or not.
    format, block_size, scale: of the FP4 weights, as in `quantize`. accuracy_level, weight_layout: as in
    MoEExpertGemmFP4; "interleaved" is the layout for CPUs, with the gate rows first.
    dense: "int8" or "int4" makes MatMulNBits of the products outside the experts, with the same accuracy_level;
    "float" keeps them in the module's precision. Embeddings stay.
    dynamic_shapes, input_names, output_names, opset: as in torch.onnx.export; without opset, 23 for a decoder and 21
    for other modules.
    fold_shared_experts: append shared experts of the routed experts' shape to them, in FP4, so that they cost no
    products of their own; False leaves them in the module's precision.
    router_logits: makes the logits [..., E] of each router an output too, "<module>.router_logits", of which
    `onnx_moe.dispatch.compute_load_balancing_loss` and the like can be computed from a run.
    next_gates: tell each router of the next one's matrix (`onnx_moe.add_next_gates`): for onnx_moe.prefetch=next-gate.
    functions: carry portable bodies, so that the file also runs without the plugin.
    calibrate: a text file (for a language model loaded with from_pretrained) or positional inputs, one tuple a call:
    experts are then quantised for the tokens that it sends to them, as GPTQ does, instead of `scale`'s rule.
    progress: called with a line before each step.

    Returns an ExportReport. Raises ExportError when a module cannot be exported, InvalidAttributeError for a wrong
    format, block size or level.
    """
    path = Path(path)
    tell = progress or (lambda _line: None)
    quantization = Quantization(format, block_size, scale, accuracy_level, weight_layout)
    validate_attributes(EXPERT_GEMM, quantization.attributes())
    check_dense(dense)
    _check_module(module, path)
    prepare_folder(path)
    target = make_target(module, example_inputs, dynamic_shapes, input_names, output_names)

    with evaluating(module):
        tell("looking for MoE layers")
        layers = _find_layers(target, fold_shared_experts)
        if router_logits:
            check_routers(layers)
        module_bytes = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
        calibrated = _calibrate(target, module, layers, quantization, calibrate, tell)
        tell(f"quantizing {len(layers)} MoE layers to {format}")
        with (
            fp4_experts(
                layers,
                quantization,
                lambda layer: tell(f"quantized {layer.path or 'the experts'}"),
                lambda layer, how: experts_buffers(layer, how, calibrated.get(layer.path)),
            ),
            in_float32(target.module, target.example) as example,
        ):
            tell("tracing the module")
            model = trace(target, example, opset or (DECODER_OPSET if example_inputs is None else MODULE_OPSET))
            tidy(model, router_logits)
            if next_gates:
                add_next_gates(model)
            quantize_dense(model, dense, accuracy_level)
            notes = {"calibration": "second-order"} if calibrated else {}
            if source := str(getattr(module, "name_or_path", "")):
                notes["source"] = source_name(source)
            add_metadata(model, format=format, scale=scale, dense=dense, **notes)
            tell("writing the model")  # in here: the initializers are the module's tensors of this moment
            save(model, path, functions)
    data = path.with_name(f"{path.name}.data")
    return ExportReport(
        path=path,
        format=format,
        layers=tuple(describe_layer(layer) for layer in layers),
        module_bytes=module_bytes,
        model_bytes=path.stat().st_size + (data.stat().st_size if data.exists() else 0),
        notes=tuple(few_tokens_note(path, layer) for path, layer in calibrated.items() if layer.few_tokens),
    )


@contextmanager
def with_fp4_weights(
    module: torch.nn.Module,
    example_inputs: Sequence[Any] | None,
    *,
    format: str = "mxfp4",
    block_size: int = 0,
    scale: str = "mse",
    fold_shared_experts: bool = True,
    calibrate: str | os.PathLike[str] | Sequence[Sequence[Any]] | None = None,
) -> Iterator[torch.nn.Module]:
    """`module` with the values that its experts' FP4 codes stand for, inside the block: what an export of it computes.

    Arguments as in `export`. The module runs in its own precision, so compare in float32.
    """
    quantization = Quantization(format, block_size, scale, 0)
    target = make_target(module, example_inputs)
    with evaluating(module):
        layers = _find_layers(target, fold_shared_experts)
        calibrated = _calibrate(target, module, layers, quantization, calibrate, lambda _line: None)
        with decoded_experts(layers, quantization, calibrated):
            yield module


def _find_layers(target: Target, fold_shared_experts: bool) -> list[MoELayer]:
    return find_layers(
        target.module, lambda: target.module(*target.example), fold_shared_experts, target.must_reach_every_layer
    )


def _calibrate(
    target: Target,
    module: torch.nn.Module,
    layers: list[MoELayer],
    quantization: Quantization,
    calibrate: str | os.PathLike[str] | Sequence[Sequence[Any]] | None,
    tell: Callable[[str], None],
) -> dict[str, CalibratedLayer]:
    if calibrate is None:
        return {}
    if quantization.scale != "mse":
        raise ExportError(f"calibrate is given, which does not follow scale={quantization.scale!r}: leave scale out.")
    if isinstance(calibrate, str | os.PathLike) and find_decoder(module) is None:
        raise ExportError(
            f"calibrate is a text, but {type(module).__name__} is no causal language model of transformers: give a "
            "list of positional inputs."
        )
    return calibrate_layers(target.module, layers, calibration_runs(module, calibrate), quantization, tell)


def _check_module(module: torch.nn.Module, path: Path) -> None:
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"module is a {type(module).__name__}: pass a torch.nn.Module.")
    if path.suffix != ".onnx":
        raise ExportError(f"path {str(path)!r} does not end in .onnx: give the file to write, such as model.onnx.")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ExportError(f"{name} is on the meta device: load the module's weights before exporting it.")
