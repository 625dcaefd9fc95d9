"""Layouts of encoded weights, each recognised by the names of the tensors that belong together.

Sources: the MXFP4 tensors of gpt-oss; ModelOpt's NVFP4 export; compressed-tensors' nvfp4-pack-quantized and
mxfp4-pack-quantized; the FP8 blocks of DeepSeek-V3 and the FP4 experts of DeepSeek-V4. All of them pack the even column
into the low four bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx_moe.errors import CheckpointError
from onnx_moe.export.checkpoint.encodings import FP8_BLOCKS, Fp4Weight, Fp8Weight, PlainWeight, Weight
from onnx_moe.export.checkpoint.files import StoredTensor

#: Makes the weight of a layout from its tensors: the weight's name, then those tensors.
_Make = Callable[[str, dict[str, StoredTensor]], Weight]


@dataclass(frozen=True)
class _Layout:
    """Tensors `<base><suffix>` that together are the weight `<base><target>`."""

    name: str
    target: str
    suffixes: tuple[str, ...]
    make: _Make
    codes: str = ""
    code_types: tuple[str, ...] = ("U8",)
    ignored: tuple[str, ...] = ()


def _fp4(format: str, codes: str, scales: str, global_scale: str = "", **options: bool) -> _Make:
    return lambda name, tensors: Fp4Weight(
        name, format, tensors[codes], tensors[scales], tensors.get(global_scale), **options
    )


def _fp8(scale: str) -> _Make:
    return lambda _name, tensors: Fp8Weight(tensors[".weight"], tensors[scale])


#: Scales of what a module takes, and of what the KV cache keeps: both stay as they are here.
_ACTIVATION_SCALES = (".input_scale", ".k_scale", ".v_scale")

#: The first layout whose tensors are all there, with codes of its type, is taken.
_LAYOUTS = (
    _Layout(
        "gpt-oss MXFP4",
        "",
        ("_blocks", "_scales"),
        _fp4("mxfp4", "_blocks", "_scales", transposed=True),
        codes="_blocks",
    ),
    _Layout(
        "compressed-tensors nvfp4-pack-quantized",
        ".weight",
        (".weight_packed", ".weight_scale", ".weight_global_scale"),
        _fp4("nvfp4", ".weight_packed", ".weight_scale", ".weight_global_scale", divides=True),
        codes=".weight_packed",
        ignored=(".input_global_scale",),
    ),
    _Layout(
        "compressed-tensors mxfp4-pack-quantized",
        ".weight",
        (".weight_packed", ".weight_scale"),
        _fp4("mxfp4", ".weight_packed", ".weight_scale"),
        codes=".weight_packed",
    ),
    _Layout(
        "ModelOpt NVFP4",
        ".weight",
        (".weight", ".weight_scale", ".weight_scale_2"),
        _fp4("nvfp4", ".weight", ".weight_scale", ".weight_scale_2"),
        codes=".weight",
        ignored=_ACTIVATION_SCALES,
    ),
    _Layout(
        "ModelOpt MXFP4",
        ".weight",
        (".weight", ".weight_scale"),
        _fp4("mxfp4", ".weight", ".weight_scale"),
        codes=".weight",
        ignored=_ACTIVATION_SCALES,
    ),
    _Layout(
        "DeepSeek-V4 FP4",
        ".weight",
        (".weight", ".scale"),
        _fp4("mxfp4", ".weight", ".scale"),
        codes=".weight",
        code_types=("I8", "U8"),
    ),
    *(
        _Layout(
            "FP8",
            ".weight",
            (".weight", scale),
            _fp8(scale),
            codes=".weight",
            code_types=("F8_E4M3",),
            ignored=_ACTIVATION_SCALES,
        )
        for scale in (".weight_scale_inv", ".weight_scale", ".scale")
    ),
)

_SCALE_TYPES = {"mxfp4": ("U8", "F8_E8M0"), "nvfp4": ("F8_E4M3",)}
_BLOCKS = {"mxfp4": 32, "nvfp4": 16}


def find_weights(tensors: dict[str, StoredTensor]) -> tuple[dict[str, Weight], set[str]]:
    """The weights that the stored `tensors` make up, by their names in the checkpoint, and the layouts met.

    Raises CheckpointError where tensors of a layout do not fit each other.
    """
    weights: dict[str, Weight] = {}
    layouts: set[str] = set()
    used: set[str] = set()
    for name in tensors:
        for layout in _LAYOUTS:
            base = name.removesuffix(layout.codes)
            if base == name or tensors[name].element_type not in layout.code_types:
                continue
            members = {suffix: tensors[base + suffix] for suffix in layout.suffixes if base + suffix in tensors}
            if len(members) == len(layout.suffixes):
                weight = layout.make(base + layout.target, members)
                _check(weight, layout.name)
                weights[base + layout.target] = weight
                layouts.add(layout.name)
                used.update(tensor.name for tensor in members.values())
                used.update(base + suffix for suffix in layout.ignored)
                break
    for name, tensor in tensors.items():
        if name not in used:
            weights[name] = PlainWeight(tensor)
    return weights, layouts


def _check(weight: Weight, layout: str) -> None:
    if isinstance(weight, Fp4Weight):
        _check_fp4(weight, layout)
    elif isinstance(weight, Fp8Weight) and (len(weight.shape) != 2 or weight.blocks is None):
        raise CheckpointError(
            f"{weight.scale.name} has shape {list(weight.scale.shape)}, which makes no scales for each block of "
            f"{' or '.join(map(str, FP8_BLOCKS))}, for each row or for all of {weight.name} {list(weight.shape)}: the "
            "checkpoint is damaged or of another layout."
        )


def _check_fp4(weight: Fp4Weight, layout: str) -> None:
    codes, scales = weight.codes, weight.scales
    if scales.element_type not in _SCALE_TYPES[weight.format]:
        raise CheckpointError(
            f"{scales.name} is {scales.element_type}, but scales of {layout} are "
            f"{' or '.join(_SCALE_TYPES[weight.format])}: the checkpoint is damaged or of another layout."
        )
    *leading, columns = weight.matrix_shape
    expected = (*leading, columns // _BLOCKS[weight.format])
    if scales.shape != expected or codes.shape[: len(leading)] != tuple(leading):
        raise CheckpointError(
            f"{scales.name} has shape {list(scales.shape)}, but {codes.name} {list(codes.shape)} takes scales of shape "
            f"{list(expected)} in {layout}: the checkpoint is damaged or of another layout."
        )
    if weight.global_scale is not None and weight.global_scale.nbytes != 4:
        raise CheckpointError(
            f"{weight.global_scale.name} has shape {list(weight.global_scale.shape)} and {weight.global_scale.nbytes} "
            "bytes, but is one float32 number for each matrix in " + layout + "."
        )
