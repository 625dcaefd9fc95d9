"""Checkpoints in FP4 keep their bytes: each layout as its own library writes it, or by hand from its definition."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import onnx_moe
from onnx_moe.errors import ExportError
from onnx_moe.export.checkpoint import CheckpointOptions, export_checkpoint
from onnx_moe.export.checkpoint.files import open_checkpoint
from onnx_moe.export.checkpoint.layouts import find_weights
from onnx_moe.export.checkpoint.skeleton import build_model, read_configuration
from onnx_moe.export.checkpoint.sources import ParameterSource, match_sources
from onnx_moe.quantization import QuantizedWeights
from tests.export.test_decoders import OnnxSteps, TorchSteps, padded_prompts, relative_error

from .folders import load_tensors, random_model, rewrite_config, save_tensors

Tensors = dict[str, torch.Tensor]


class Encoded(NamedTuple):
    """A matrix [N, K] in a layout: its tensors by the suffix of their names, and the library's own decoding."""

    tensors: Tensors
    values: torch.Tensor


def _compressed_tensors(scheme_name: str, compressor_module: str, compressor: str) -> Callable[..., Encoded]:
    def encode(weight: torch.Tensor) -> Encoded:
        pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
        from importlib import import_module

        from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
        from compressed_tensors.quantization import preset_name_to_scheme
        from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

        library = getattr(import_module(f"compressed_tensors.compressors.{compressor_module}"), compressor)
        scheme = preset_name_to_scheme(scheme_name, ["Linear"])
        assert scheme.weights is not None
        groups = weight.unflatten(-1, (-1, scheme.weights.group_size))
        state = {"weight": weight}
        if scheme_name.startswith("NVFP4"):
            state["weight_global_scale"] = generate_gparam(weight.min(), weight.max())
        scales, _ = calculate_qparams(
            groups.amin(-1), groups.amax(-1), scheme.weights, global_scale=state.get("weight_global_scale")
        )
        packed = library.compress({**state, "weight_scale": scales}, scheme)
        # Its own decompression rounds products to bfloat16: only the codes' values are taken from it.
        codes = unpack_fp4_from_uint8(packed["weight_packed"], *weight.shape, dtype=torch.float32)
        steps = library._decompress_scale(packed["weight_scale"], torch.float32)
        steps = steps / packed.get("weight_global_scale", torch.tensor(1.0))
        values = codes.unflatten(-1, (steps.shape[-1], -1)) * steps[..., None]
        return Encoded({f".{name}": tensor for name, tensor in packed.items()}, values.reshape(weight.shape))

    return encode


def _modelopt(weight: torch.Tensor) -> Encoded:
    """By hand, with the names that ModelOpt exports; the numbers are torchao's two-level NVFP4, the same ones."""
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    global_scale = per_tensor_amax_to_scale(weight.abs().max())
    quantized = NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=global_scale)
    tensors = {
        ".weight": quantized.qdata,
        ".weight_scale": quantized.scale.view(torch.float8_e4m3fn).reshape(weight.shape[0], -1),
        ".weight_scale_2": global_scale.float(),
        ".input_scale": torch.tensor(1.0),
    }
    return Encoded(tensors, quantized.dequantize(torch.float32))


def _mx(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [N, K/2], E8M0 scales [N, K/32] and values, by torchao."""
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    tensor = MXTensor.to_mx(weight, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode.EVEN)
    codes = tensor.qdata.view(torch.uint8).reshape(weight.shape[0], -1)
    return codes, tensor.scale.view(torch.uint8).reshape(weight.shape[0], -1), tensor.dequantize(torch.float32)


def _deepseek_v4(weight: torch.Tensor) -> Encoded:
    codes, scales, values = _mx(weight)
    return Encoded({".weight": codes.view(torch.int8), ".scale": scales.view(torch.float8_e8m0fnu)}, values)


class Layout(NamedTuple):
    model_type: str
    format: str
    name: str
    encode: Callable[[torch.Tensor], Encoded]


_V4 = {
    "n_routed_experts": 4,
    "num_key_value_heads": 1,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 16,
    "layer_types": ["sliding_attention"],
    "mlp_layer_types": ["moe"],
    "index_n_heads": 2,
    "index_head_dim": 16,
}

LAYOUTS = {
    "compressed-tensors nvfp4": Layout(
        "qwen3_moe",
        "nvfp4",
        "compressed-tensors nvfp4-pack-quantized",
        _compressed_tensors("NVFP4A16", "nvfp4.base", "NVFP4PackedCompressor"),
    ),
    "compressed-tensors mxfp4": Layout(
        "qwen3_moe",
        "mxfp4",
        "compressed-tensors mxfp4-pack-quantized",
        _compressed_tensors("MXFP4A16", "mxfp4.base", "MXFP4PackedCompressor"),
    ),
    "ModelOpt NVFP4": Layout("qwen3_moe", "nvfp4", "ModelOpt NVFP4", _modelopt),
    "DeepSeek-V4": Layout("deepseek_v4", "mxfp4", "DeepSeek-V4 FP4", _deepseek_v4),
}


def _write(folder: Path, layout: Layout) -> dict[str, Encoded]:
    """A checkpoint whose experts are in `layout`; the encoded matrices by their names without ".weight"."""
    settings = _V4 if layout.model_type == "deepseek_v4" else {}
    random_model(layout.model_type, **settings).save_pretrained(folder)
    tensors = load_tensors(folder)
    encoded = {}
    for name in [name for name in tensors if re.search(r"\.experts\.\d+\.", name)]:
        base = name.removesuffix(".weight")
        # Each matrix has a magnitude of its own, so that global scales differ.
        weight = tensors.pop(name).float() * (1 + len(encoded) % 5)
        encoded[base] = layout.encode(weight)
        tensors |= {base + suffix: tensor for suffix, tensor in encoded[base].tensors.items()}
    save_tensors(folder, tensors)
    return encoded


def _expert_sources(folder: Path, name: str) -> Iterator[ParameterSource]:
    with open_checkpoint(str(folder)) as files:
        model = build_model(read_configuration(folder), torch.float32, "eager")
        weights, layouts = find_weights(files.tensors)
        assert layouts == {name}
        for source in match_sources(model, weights, files).values():
            if len(source.shape) == 3 and source.fp4_format:
                yield source


@pytest.mark.parametrize("name", LAYOUTS)
def test_bytes_are_kept(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    encoded = _write(tmp_path / "checkpoint", layout)
    seen = 0
    for source in _expert_sources(tmp_path / "checkpoint", layout.name):
        parts = ("w1", "w3") if layout.model_type == "deepseek_v4" else ("gate_proj", "up_proj")
        down = "w2" if layout.model_type == "deepseek_v4" else "down_proj"
        for expert in range(source.shape[0]):
            wanted = [
                next(matrix for base, matrix in encoded.items() if base.endswith(f".experts.{expert}.{part}"))
                for part in (parts if "gate_up" in source.name else (down,))
            ]
            codes, scales, global_scales = source.read_expert_codes(expert)
            pairs = [
                [tensor.view(torch.uint8) for tensor in matrix.tensors.values() if tensor.ndim == 2]
                for matrix in wanted
            ]
            joined = [torch.cat(group) for group in zip(*pairs, strict=True)]
            stored = {tuple(tensor.shape): tensor for tensor in joined}
            assert torch.equal(codes[0], stored[tuple(codes[0].shape)])
            assert torch.equal(scales[0], stored[tuple(scales[0].shape)])
            rows = codes.shape[1] // len(wanted)
            for index, matrix in enumerate(wanted):
                part = slice(index * rows, (index + 1) * rows)
                values = onnx_moe.dequantize(
                    QuantizedWeights(
                        codes[0, part].numpy(),
                        scales[0, part].numpy(),
                        np.array(global_scales[index], np.float32) if layout.format == "nvfp4" else None,
                        layout.format,
                        0,
                    )
                )
                # Two products of floats in another order; exact where scales are powers of two.
                tolerance = 3e-7 if layout.format == "nvfp4" else 0.0
                torch.testing.assert_close(torch.from_numpy(values), matrix.values, rtol=tolerance, atol=0.0)
                seen += 1
    assert seen == len(encoded)


@pytest.mark.parametrize("weight_layout", ["rows", "interleaved"])
def test_gpt_oss_blocks(weight_layout: str, tmp_path: Path) -> None:
    """From the file to the logits: the model with the values that the codes stand for computes the same. Its gates lie
    between the up rows, where "rows" leaves them; "interleaved" moves them.
    """
    model = random_model("gpt_oss", torch.float32, num_local_experts=4, layer_types=["full_attention"])
    model.save_pretrained(tmp_path / "checkpoint")
    tensors = load_tensors(tmp_path / "checkpoint")
    for kind in ("gate_up_proj", "down_proj"):
        name = f"model.layers.0.mlp.experts.{kind}"
        weight = tensors.pop(name).transpose(1, 2).contiguous()
        encoded = [_mx(matrix) for matrix in weight]
        experts, rows, columns = weight.shape
        tensors[f"{name}_blocks"] = torch.stack([codes for codes, _, _ in encoded]).view(
            experts, rows, columns // 32, 16
        )
        tensors[f"{name}_scales"] = torch.stack([scales for _, scales, _ in encoded])
        with torch.no_grad():
            model.get_parameter(name).copy_(torch.stack([values for _, _, values in encoded]).transpose(1, 2))
    save_tensors(tmp_path / "checkpoint", tensors)
    rewrite_config(tmp_path / "checkpoint", quantization_config={"quant_method": "mxfp4"})
    options = CheckpointOptions(weight_layout=weight_layout)
    report = export_checkpoint(tmp_path / "checkpoint", tmp_path / "out", options)
    assert report.layouts == ("gpt-oss MXFP4",)
    input_ids, attention_mask = padded_prompts()
    actual = OnnxSteps(report.folder / "model.onnx", 3).step(input_ids, attention_mask)
    expected = TorchSteps(model).step(input_ids, attention_mask)
    valid = attention_mask.bool()
    assert relative_error(actual[valid], expected[valid]) < 1e-5


@pytest.mark.parametrize("name", ["ModelOpt NVFP4", "DeepSeek-V4"])
def test_from_the_file_to_the_logits(name: str, tmp_path: Path) -> None:
    """Magnitudes of gate and up differ: with one global scale for both of NVFP4's, the logits would be others."""
    layout = LAYOUTS[name]
    encoded = _write(tmp_path / "checkpoint", layout)
    model = random_model(layout.model_type, **(_V4 if name == "DeepSeek-V4" else {})).float()
    with torch.no_grad():
        experts = model.model.layers[0].mlp.experts
        for base, matrix in encoded.items():
            expert, kind = int(base.split(".")[-2]), base.split(".")[-1]
            if kind in ("down_proj", "w2"):
                experts.down_proj[expert].copy_(matrix.values)
            else:
                half = experts.gate_up_proj[expert].chunk(2)[kind in ("up_proj", "w3")]
                half.copy_(matrix.values)
    report = export_checkpoint(tmp_path / "checkpoint", tmp_path / "out")
    assert report.format == layout.format
    input_ids, attention_mask = padded_prompts()
    actual = OnnxSteps(report.folder / "model.onnx", 3).step(input_ids, attention_mask)
    expected = TorchSteps(model).step(input_ids, attention_mask)
    valid = attention_mask.bool()
    assert relative_error(actual[valid], expected[valid]) < 1e-5


def test_another_format_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "checkpoint", LAYOUTS["ModelOpt NVFP4"])
    with pytest.raises(ExportError, match=r"format='mxfp4', but the checkpoint's experts are in nvfp4 already"):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "out", CheckpointOptions(format="mxfp4"))
    assert not (tmp_path / "out.partial").exists()


def _damaged(change: Callable[[Tensors], Any], tmp_path: Path) -> Path:
    _write(tmp_path / "checkpoint", LAYOUTS["ModelOpt NVFP4"])
    tensors = load_tensors(tmp_path / "checkpoint")
    change(tensors)
    save_tensors(tmp_path / "checkpoint", tensors)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.update(
                {name: tensor[:, :-1] for name, tensor in tensors.items() if name.endswith("3.up_proj.weight_scale")}
            ),
            r"3\.up_proj\.weight_scale has shape \[64, 7\], but .* takes scales of shape \[64, 8\]",
        ),
        (
            lambda tensors: tensors.update(
                {name: tensor.float() for name, tensor in tensors.items() if name.endswith("3.up_proj.weight_scale")}
            ),
            r"3\.up_proj\.weight_scale is F32, but scales of ModelOpt NVFP4 are F8_E4M3",
        ),
        (
            lambda tensors: tensors.pop("model.layers.0.mlp.experts.3.up_proj.weight_scale"),
            r"3\.up_proj\.weight.* is U8 without scales|do not make up",
        ),
    ],
)
def test_damaged_scales(change: Callable[[Tensors], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export_checkpoint(_damaged(change, tmp_path), tmp_path / "out")
