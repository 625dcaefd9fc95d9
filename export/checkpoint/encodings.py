"""How a checkpoint encodes a weight: plain numbers, FP4 codes with scales, or FP8 with scales.

Each layout is recognised by the names of the tensors that belong together. Sources: the MXFP4 tensors of
gpt-oss; ModelOpt's NVFP4 export; compressed-tensors' nvfp4-pack-quantized and mxfp4-pack-quantized; the FP8 blocks
of DeepSeek-V3 and the FP4 experts of DeepSeek-V4. All of them pack the even column into the low four bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from onnx_moe.errors import CheckpointError
from onnx_moe.export.checkpoint.files import CheckpointFiles, StoredTensor
from onnx_moe.quantization import QuantizedWeights, dequantize


class Weight(Protocol):
    """A weight of the model as a checkpoint holds it: shape and stored bytes, whatever its encoding."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def parts(self) -> tuple[StoredTensor, ...]: ...

    def read(self, files: CheckpointFiles, rows: range | None = None) -> torch.Tensor:
        """The numbers themselves, or those of `rows` along the first dimension."""
        ...


@dataclass(frozen=True)
class _StoredWeight:
    """A weight of a stored tensor's name and shape."""

    stored: StoredTensor

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape


class PlainWeight(_StoredWeight):
    """Floating-point numbers, or whatever the model has there."""

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        return (self.stored,)

    def read(self, files: CheckpointFiles, rows: range | None = None) -> torch.Tensor:
        return files.read(self.stored, rows)


@dataclass(frozen=True)
class Fp4Weight:
    """E2M1 codes and block scales: [N, K], or [E, N, K] for all experts in one tensor.

    transposed: the model's parameter is [E, K, N] (gpt-oss). divides: the global scale divides (compressed-tensors).
    """

    name: str
    format: str
    codes: StoredTensor
    scales: StoredTensor
    global_scale: StoredTensor | None = None
    divides: bool = False
    transposed: bool = False

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """[..., N, K]."""
        leading = self.scales.shape[:-1]
        columns = 2
        for size in self.codes.shape[len(leading) :]:
            columns *= size
        return (*leading, columns)

    @property
    def shape(self) -> tuple[int, ...]:
        *leading, rows, columns = self.matrix_shape
        return (*leading, columns, rows) if self.transposed else self.matrix_shape

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        return tuple(part for part in (self.codes, self.scales, self.global_scale) if part is not None)

    def read_codes(self, files: CheckpointFiles, rows: range | None = None) -> torch.Tensor:
        """uint8 [..., N, K/2]."""
        codes = files.read(self.codes, rows).view(torch.uint8)
        return codes.reshape(*codes.shape[: len(self.scales.shape) - 1], -1)

    def read_scales(self, files: CheckpointFiles, rows: range | None = None) -> torch.Tensor:
        """uint8 [..., N, K/block]."""
        return files.read(self.scales, rows).view(torch.uint8)

    def read_global_scale(self, files: CheckpointFiles) -> float:
        """What multiplies: 1 where the layout has none."""
        if self.global_scale is None:
            return 1.0
        value = files.read(self.global_scale).float().reshape(())
        return float(1 / value) if self.divides else float(value)

    def read(self, files: CheckpointFiles, rows: range | None = None) -> torch.Tensor:
        codes, scales = self.read_codes(files, rows), self.read_scales(files, rows)
        global_scale = torch.full(codes.shape[:-2], self.read_global_scale(files), dtype=torch.float32)
        values = torch.from_numpy(
            dequantize(
                QuantizedWeights(
                    codes.numpy(),
                    scales.numpy(),
                    global_scale.numpy() if self.format == "nvfp4" else None,
                    self.format,
                    0,
                )
            )
        )
        return values.transpose(-1, -2) if self.transposed else values


@dataclass(frozen=True)
class Fp8Weight(_StoredWeight):
    """E4M3 numbers [N, K] with a float scale for each block of 128 × 128, or one for each row, or for the matrix."""

    scale: StoredTensor

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        return (self.stored, self.scale)

    def read(self, files: CheckpointFiles, rows: range | None = None) -> torch.Tensor:
        values, scale = files.read(self.stored, rows).float(), files.read(self.scale).float()
        if scale.numel() == 1:
            return values * scale.reshape(())
        scale = scale.reshape(scale.shape[0], -1)
        for dimension in range(2):
            block = -(-self.shape[dimension] // scale.shape[dimension])
            scale = scale.repeat_interleave(block, dimension)
        first = rows.start if rows is not None else 0
        return values * scale[first : first + values.shape[0], : values.shape[1]]


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
        ignored=(".input_scale",),
    ),
    _Layout(
        "ModelOpt MXFP4",
        ".weight",
        (".weight", ".weight_scale"),
        _fp4("mxfp4", ".weight", ".weight_scale"),
        codes=".weight",
        ignored=(".input_scale",),
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
        _Layout("FP8", ".weight", (".weight", scale), _fp8(scale), codes=".weight", code_types=("F8_E4M3",))
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
    if not isinstance(weight, Fp4Weight):
        return
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
