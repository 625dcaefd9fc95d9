"""Which weights of a checkpoint make up each parameter of the model: transformers' own renamings and conversions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from onnx_moe.errors import CheckpointError
from onnx_moe.export.checkpoint.encodings import Fp4Weight, PlainWeight, Weight
from onnx_moe.export.checkpoint.files import CheckpointFiles, StoredTensor

#: Conversions that stack experts and put their rows one after the other: they do the same to rows of codes.
_ROW_CONVERSIONS = ("MergeModulelist", "Concatenate")


@dataclass
class ParameterSource:
    """Where a parameter's values come from.

    converter: what makes parameters of weights, and converted_as: the first of those that it makes, by which it knows
    the layer. pieces: (pattern, weight) in the checkpoint's natural order; without a converter there is one.
    """

    name: str
    shape: tuple[int, ...]
    files: CheckpointFiles
    model: Any
    converter: Any = None
    converted_as: str = ""
    pieces: list[tuple[str, Weight]] = field(default_factory=list)

    @property
    def weights(self) -> list[Weight]:
        return [weight for _, weight in self.pieces]

    @property
    def fp4_weights(self) -> list[Fp4Weight]:
        """Those that are in FP4."""
        return [weight for weight in self.weights if isinstance(weight, Fp4Weight)]

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return sum(part.nbytes for weight in self.weights for part in weight.parts)

    @property
    def position(self) -> tuple[str, int]:
        """File and offset of the first piece."""
        part = self.weights[0].parts[0]
        return str(part.file), part.offset

    def read(self) -> torch.Tensor:
        """The whole parameter, in the element type in which it is stored."""
        return self._convert(self.pieces, lambda weight: weight.read(self.files))

    def read_rows(self, rows: range) -> torch.Tensor:
        """Rows along the first dimension of a parameter that needs no conversion."""
        assert self.converter is None
        return self.weights[0].read(self.files, rows)

    def read_expert(self, expert: int, rows: range) -> torch.Tensor:
        """The slice of one expert, which are `rows` along the parameter's first dimension."""
        if (parts := self._stored_rows(expert)) is not None:
            return self.files.read_together(parts)[None]
        return self._expert(expert, rows, lambda weight, own: weight.read(self.files, own))

    def read_expert_codes(self, expert: int) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
        """FP4 as it is: codes [1, N, K/2], scales [1, N, K/block], the global scale of each piece of rows."""
        row = range(expert, expert + 1)
        codes = self._expert(expert, row, lambda weight, rows: _fp4(weight).read_codes(self.files, rows))
        scales = self._expert(expert, row, lambda weight, rows: _fp4(weight).read_scales(self.files, rows))
        return codes, scales, [_fp4(weight).read_global_scale(self.files) for weight in self._of_expert(expert)]

    @property
    def fp4_format(self) -> str | None:
        """The FP4 format of an experts parameter whose codes can be taken as they are; None if it has none."""
        formats = {weight.format if isinstance(weight, Fp4Weight) else None for weight in self.weights}
        if len(formats) != 1 or None in formats:
            return None
        operations = [] if self.converter is None else _operations(self.converter)
        return formats.pop() if all(name in _ROW_CONVERSIONS for name in operations) else None

    def _stored_rows(self, expert: int) -> list[StoredTensor] | None:
        """The tensors whose rows, one after the other, are the matrix of an expert; None where it is made otherwise."""
        if self.converter is None or self._stacked or not _joins_rows(self.converter):
            return None
        weights = self._of_expert(expert)
        kinds = {(weight.parts[0].element_type, weight.shape[1:]) for weight in weights}
        plain = all(isinstance(weight, PlainWeight) and len(weight.shape) == 2 for weight in weights)
        return [weight.parts[0] for weight in weights] if plain and len(kinds) == 1 else None

    @property
    def global_scales(self) -> int:
        """How many global scales an expert of an FP4 parameter has: one for each piece of rows."""
        return len(self._of_expert(0))

    @property
    def _stacked(self) -> bool:
        """Whether one tensor holds all experts."""
        return len(self.weights[0].shape) == len(self.shape)

    def _of_expert(self, expert: int) -> list[Weight]:
        """The expert's weights, in the order in which the converter puts their rows together."""
        if self._stacked:
            return self.weights
        patterns = self.converter.source_patterns
        return [self._by_pattern(pattern)[expert] for pattern in patterns]

    def _by_pattern(self, pattern: str) -> list[Weight]:
        return [weight for own, weight in self.pieces if own == pattern]

    def _expert(self, expert: int, rows: range, read: Callable[[Weight, range | None], torch.Tensor]) -> torch.Tensor:
        if self._stacked:
            return self._convert(self.pieces, lambda weight: read(weight, rows))
        pieces = [(pattern, self._by_pattern(pattern)[expert]) for pattern in self.converter.source_patterns]
        return self._convert(pieces, lambda weight: read(weight, None))

    def _convert(self, pieces: list[tuple[str, Weight]], read: Callable[[Weight], torch.Tensor]) -> torch.Tensor:
        if self.converter is None:
            return read(pieces[0][1])
        converter = copy.deepcopy(self.converter)
        for pattern, weight in pieces:
            converter.add_tensor(self.converted_as, weight.name, pattern, lambda weight=weight: read(weight))
        results = converter.convert(self.converted_as, model=self.model, config=self.model.config)
        result = results[self.name]
        tensor: torch.Tensor = result[0] if isinstance(result, list) else result
        return tensor

    def check(self) -> None:
        """CheckpointError unless the pieces make up a parameter of this shape, tried without their values."""
        self._check_experts()
        try:
            shape = tuple(self._convert(self.pieces, lambda weight: torch.empty(weight.shape, device="meta")).shape)
        except Exception as error:  # transformers' conversions raise whatever torch raises
            raise CheckpointError(f"{self._described()} do not make up {self.name}: {error}.") from error
        if shape != self.shape:
            raise CheckpointError(
                f"{self._described()} give {self.name} the shape {list(shape)}, but config.json makes it "
                f"{list(self.shape)}: the configuration is of another model."
            )

    def _check_experts(self) -> None:
        if self.converter is None or "MergeModulelist" not in _operations(self.converter):
            return
        counts = {pattern: len(self._by_pattern(pattern)) for pattern in self.converter.source_patterns}
        for pattern, count in counts.items():
            if count != self.shape[0]:
                raise CheckpointError(
                    f"{self.name} is made of {self.shape[0]} tensors {pattern.strip(chr(92))}, but the checkpoint has "
                    f"{count}: an expert is missing, or config.json is of another model."
                )

    def _described(self) -> str:
        first = self.weights[0]
        more = f" and {len(self.weights) - 1} more" if len(self.weights) > 1 else ""
        return f"{first.name} {list(first.shape)}{more}"


def _operations(converter: Any) -> list[str]:
    """What a converter does, by the names of transformers' classes."""
    return [type(operation).__name__ for operation in converter.operations]


def _joins_rows(converter: Any) -> bool:
    """Whether a conversion stacks experts, the rows of whose tensors it puts one after the other, and does no more."""
    stack, *others = [(type(operation).__name__, getattr(operation, "dim", None)) for operation in converter.operations]
    return stack == ("MergeModulelist", 0) and others in ([], [("Concatenate", 1)])


def _fp4(weight: Weight) -> Fp4Weight:
    assert isinstance(weight, Fp4Weight)
    return weight


def match_sources(model: Any, weights: dict[str, Weight], files: CheckpointFiles) -> dict[str, ParameterSource]:
    """The source of each parameter and persistent buffer of `model` (on the meta device), shapes checked.

    Raises CheckpointError for a parameter that the checkpoint does not have or that does not fit. Weights that the
    model has no place for are left out, as transformers leaves them out.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    wanted = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = model.base_model_prefix
    sources: dict[str, ParameterSource] = {}
    for name in sorted(weights, key=dot_natural_key):
        _check_known(name, weights)
        target, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if target not in wanted and name in wanted:
            target, pattern = rename_source_key(name, [], [], prefix, wanted)
        converter = by_pattern[pattern] if pattern is not None else None
        for one in _targets(target, converter):
            if one in wanted:
                source = sources.setdefault(
                    one, ParameterSource(one, tuple(wanted[one].shape), files, model, converter, target)
                )
                source.pieces.append((pattern or name, weights[name]))
    _add_tied(model, sources)
    _check_all(wanted, sources)
    return sources


def _check_known(name: str, weights: dict[str, Weight]) -> None:
    """CheckpointError for a tensor of unknown meaning beside an encoded weight, such as a factor of its input."""
    module, _, kind = name.rpartition(".")
    encoded = weights.get(f"{module}.weight")
    if kind not in ("weight", "bias") and encoded is not None and len(encoded.parts) > 1:
        raise CheckpointError(
            f"{name} belongs to {encoded.name}, but no layout of docs/checkpoints.md has a {kind}: without it the "
            "weight would mean something else. Use the checkpoint in bfloat16, or in one of those layouts."
        )


def _targets(target: str, converter: Any) -> list[str]:
    """Every parameter that a converter fills: rename_source_key names the first only."""
    if converter is None:
        return [target]
    first, *others = converter.target_patterns
    return [target, *(target.replace(first, other) for other in others)]


def _add_tied(model: Any, sources: dict[str, ParameterSource]) -> None:
    for name, original in getattr(model, "all_tied_weights_keys", {}).items():
        for one, other in ((name, original), (original, name)):
            if one not in sources and other in sources:
                sources[one] = sources[other]


def _check_all(wanted: dict[str, torch.Tensor], sources: dict[str, ParameterSource]) -> None:
    missing = [name for name in wanted if name not in sources]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"The checkpoint has no {missing[0]}{more}: config.json is of another model, or a file is missing."
        )
    for name, source in sources.items():
        source.check()
        for weight in source.weights:
            _check_type(name, wanted[name].dtype, weight)


def _check_type(name: str, dtype: torch.dtype, weight: Weight) -> None:
    if isinstance(weight, Fp4Weight) or not dtype.is_floating_point:
        return
    stored = weight.parts[0]
    readable = stored.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    if not readable and len(weight.parts) == 1:
        raise CheckpointError(
            f"{stored.name} is {stored.element_type} without scales that are known, but {name} takes floating-point "
            "numbers: use a checkpoint in bfloat16, float16 or float32, or in one of the FP4 layouts of "
            "docs/checkpoints.md."
        )
