"""A decoder's cache as plain tensors: found on a run of the model, rebuilt from a graph's inputs, read back at its end.

Layers of transformers keep keys and values (multi-head latent attention: the latent), an indexer's keys, states of
convolutions and recurrences. Sliding windows keep everything here: their mask forgets, not their cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import (
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from onnx_moe.errors import ExportError
from onnx_moe.export.compressed_attention import CompressedLayer, compressed_tensors, is_compressed


@dataclass(frozen=True)
class CacheTensor:
    """One tensor of a layer's cache. shape: for 1 row. axis: the one that grows, None for a state of fixed size.
    length: what the size along it is called; the same name is the same size.
    """

    layer: int
    name: str
    shape: tuple[int, ...]
    axis: int | None
    length: str
    dtype: torch.dtype

    def example(self, batch: int, length: int) -> torch.Tensor:
        """Zeros for `batch` rows and, where it grows, of `length`."""
        shape = list(self.shape)
        shape[0] = batch
        if self.axis is not None:
            shape[self.axis] = length
        return torch.zeros(shape, dtype=self.dtype)


@dataclass(frozen=True)
class CacheLayout:
    """The cache of a model: the layer classes that its own cache is made of, and the tensors that hold it, in order.

    kind: the cache's own class; of those beside transformers' usual one, MiniMax-Text-01's is known.

    key_widths: of layers whose keys and values differ in width. A graph holds them in two tensors of the same width,
    which onnxruntime-genai needs, and which cost no memory: the two halves of key and value side by side.
    """

    classes: tuple[type, ...]
    tensors: tuple[CacheTensor, ...]
    key_widths: Mapping[int, int]
    kind: type[DynamicCache] = DynamicCache

    def names(self, prefix: str) -> list[str]:
        """<prefix>.<n>.<name> of each tensor: n counts the layers that keep something."""
        number = {layer: index for index, layer in enumerate(sorted({tensor.layer for tensor in self.tensors}))}
        return [f"{prefix}.{number[tensor.layer]}.{tensor.name}" for tensor in self.tensors]

    def build(self, tensors: Sequence[torch.Tensor]) -> Any:
        """A cache that holds `tensors`, in the layout's order."""
        values: list[dict[str, torch.Tensor]] = [{} for _ in self.classes]
        for description, tensor in zip(self.tensors, tensors, strict=True):
            values[description.layer][description.name] = tensor
        for layer, width in self.key_widths.items():
            joined = torch.cat([values[layer]["key"], values[layer]["value"]], dim=-1)
            values[layer] |= {"key": joined[..., :width], "value": joined[..., width:]}
        cache: Any = self.kind()  # without a configuration: no layer forgets, and the trace has no branches
        if hasattr(cache, "linear_cache"):
            _move_linear_states(cache, values)
        cache.layers = [_make_layer(kind, held) for kind, held in zip(self.classes, values, strict=True)]
        return cache

    def read(self, cache: Any) -> list[torch.Tensor]:
        """The tensors that hold `cache`, of the model's own making or from `build`, in the layout's order."""
        held = {(index, name): tensor for index, name, _, _, tensor in _walk(cache)}
        for layer in self.key_widths:
            joined = torch.cat([held[layer, "key"], held[layer, "value"]], dim=-1)
            held[layer, "key"], held[layer, "value"] = joined.chunk(2, dim=-1)
        return [held[tensor.layer, tensor.name] for tensor in self.tensors]


def _move_linear_states(cache: Any, values: list[dict[str, torch.Tensor]]) -> None:
    """Gives MiniMax-Text-01's cache its states, and their layers keys without width: it counts tokens in layer 0."""
    attention = next(held for held in values if "key" in held)
    for layer, held in enumerate(values):
        if "recurrent_state" in held:
            cache.set_linear_cache(layer, held.pop("recurrent_state"))
            held |= {name: attention[name][..., :0] for name in ("key", "value")}


class _StateLayer(LinearAttentionLayer):
    """States that are replaced, not written in place: a graph has no memory. There always is a previous state: zeros
    are what a first run starts from.
    """

    def update_conv_state(
        self, conv_states: torch.Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_keywords: Any
    ) -> torch.Tensor:
        states: Any = self  # transformers allows for states that are not there yet
        full = torch.cat([states.conv_states[state_idx], conv_states], dim=-1)
        self.conv_states[state_idx] = full[..., -states.conv_kernel_size[state_idx] :]
        return full

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, state_idx: int = 0, **_keywords: Any
    ) -> torch.Tensor:
        states: Any = self
        self.recurrent_states[state_idx] = recurrent_states.to(states.recurrent_states[state_idx].dtype)
        return recurrent_states


class _StateAndAttentionLayer(_StateLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc, override]  # as there
    pass


#: Layer classes of transformers → what stands for them in a graph.
_STAND_INS: dict[type, type] = {
    DynamicLayer: DynamicLayer,
    DynamicSlidingWindowLayer: DynamicLayer,
    DynamicIndexedLayer: DynamicIndexedLayer,
    LinearAttentionLayer: _StateLayer,
    LinearAttentionAndFullAttentionLayer: _StateAndAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer: _StateAndAttentionLayer,
    DummyLayer: DummyLayer,
}

_STATES = ("conv_state", "recurrent_state")

#: What the number of tokens so far is called in a graph.
TOKENS = "past_length"


def cache_name(model: torch.nn.Module) -> str:
    """What forward and its output call the cache: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def find_cache_layout(model: Any) -> CacheLayout:
    """The layout of `model`'s cache, seen on a run of two tokens."""
    device = next(model.parameters()).device
    with torch.no_grad():
        output = model(input_ids=torch.ones(1, 2, dtype=torch.long, device=device), use_cache=True)
    cache = output.get(cache_name(model))
    layers = getattr(cache, "layers", [])
    unknown = sorted({type(layer).__name__ for layer in layers if _stand_in(type(layer)) is None})
    known = type(cache) is DynamicCache or hasattr(cache, "linear_cache")
    if not known or not layers or unknown:
        kept = ", ".join(unknown) or type(cache).__name__
        raise ExportError(
            f"{type(model).__name__} keeps a cache of its own ({kept}), whose tensors the exporter does not know: "
            "export its blocks or layers instead."
        )
    tensors = tuple(
        CacheTensor(index, name, tuple(tensor.shape), axis, length, tensor.dtype)
        for index, name, axis, length, tensor in _walk(cache)
    )
    classes = [type(layer) for layer in layers]
    classes += [DynamicLayer] * (len(getattr(cache, "linear_cache", ())) - len(classes))
    return _with_equal_widths(CacheLayout(tuple(classes), tensors, {}, type(cache)))


def _with_equal_widths(layout: CacheLayout) -> CacheLayout:
    tensors = layout.tensors
    shapes = {(tensor.layer, tensor.name): tensor.shape for tensor in tensors}
    key_widths = {}
    for (layer, name), shape in shapes.items():
        value = shapes.get((layer, "value"), shape)
        if name == "key" and value != shape and value[:3] == shape[:3] and (value[3] + shape[3]) % 2 == 0:
            key_widths[layer] = shape[3]
    halves = {layer: (width + shapes[layer, "value"][3]) // 2 for layer, width in key_widths.items()}
    stored = tuple(
        replace(tensor, shape=(*tensor.shape[:3], halves[tensor.layer]))
        if tensor.layer in halves and tensor.name in ("key", "value")
        else tensor
        for tensor in tensors
    )
    return replace(layout, tensors=stored, key_widths=key_widths)


def _walk(cache: Any) -> Iterator[tuple[int, str, int | None, str, torch.Tensor]]:
    """(layer, name, axis that grows, what its size is called, tensor) of everything that `cache` holds."""
    for index, layer in enumerate(cache.layers):
        held: Any = layer  # keys without values do not occur
        if isinstance(layer, CacheLayerMixin) and held.keys is not None:
            yield index, "key", 2, TOKENS, held.keys
            yield index, "value", 2, TOKENS, held.values
        if isinstance(layer, DynamicIndexedLayer) and held.indexer_keys is not None:
            yield index, "indexer_key", 1, TOKENS, held.indexer_keys
        if isinstance(layer, LinearAttentionLayer):
            for kind in _STATES:
                for number, state in getattr(layer, f"{kind}s").items():
                    if state is not None:
                        yield index, f"{kind}.{number}" if number else kind, None, "", state
        if is_compressed(type(layer)):
            for name, length, tensor in compressed_tensors(layer):
                yield index, name, 1 if length else None, f"{length}_{index}" if length else "", tensor
    for index, state in enumerate(getattr(cache, "linear_cache", ())):
        if isinstance(state, torch.Tensor):
            yield index, "recurrent_state", None, "", state


def _stand_in(kind: type) -> type | None:
    """What stands for transformers' layer class `kind` in a graph; None if that is not known."""
    return CompressedLayer if is_compressed(kind) else _STAND_INS.get(kind)


def _make_layer(kind: type, held: Mapping[str, torch.Tensor]) -> Any:
    stand_in: Any = _stand_in(kind)
    layer: Any
    if issubclass(stand_in, LinearAttentionLayer):
        layer = stand_in(number_of_states=1 + max((_number(name) for name in held), default=0))
    else:
        layer = stand_in()
    if "key" in held:
        layer.lazy_initialization(held["key"], held["value"])  # sets what else the layer keeps
        layer.keys, layer.values = held["key"], held["value"]
    if "indexer_key" in held:
        layer.lazy_initialization_indexer(held["indexer_key"])
        layer.indexer_keys = held["indexer_key"]
    for name, state in held.items():
        if name.startswith(_STATES):
            _set_state(layer, name, state)
        elif isinstance(layer, CompressedLayer) and "." in name:
            layer.hold(name, state)
    return layer


def _set_state(layer: Any, name: str, state: torch.Tensor) -> None:
    kind, number = name.partition(".")[0], _number(name)
    getattr(layer, f"{kind}s")[number] = state
    getattr(layer, f"is_{kind}s_initialized")[number] = True
    layer.has_previous_state[number] = True
    layer.dtype, layer.device = state.dtype, state.device
    if kind == "conv_state":
        layer.conv_kernel_size[number] = state.shape[-1]


def _number(name: str) -> int:
    """Which of a layer's states: "conv_state.1" → 1."""
    return int(name.rpartition(".")[2]) if "." in name else 0
