"""DeepSeek-V4's compressed attention for a graph of any length.

Keys of a window of tokens become one entry once the window is full. Transformers decides in Python whether a run fills
one; here a run may fill any number of windows, none included, and what is left of the tokens waits in a tensor whose
length is free. The arithmetic is that of transformers' modules of the same names.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicLayer

from onnx_moe.export.patching import replace_forward

#: Names of what is compressed apart in a layer, as transformers calls them.
_KINDS = ("compressor", "indexer")


class CompressedLayer(DynamicLayer):
    """A layer's cache: keys and values of all tokens, and the tensors of `compressed_tensors`, by kind."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.compressed_kv: dict[str, torch.Tensor] = {}
        self.buffer_kv: dict[str, torch.Tensor] = {}
        self.buffer_gate: dict[str, torch.Tensor] = {}
        self.overlap_kv: dict[str, torch.Tensor] = {}
        self.overlap_gate: dict[str, torch.Tensor] = {}

    def hold(self, name: str, tensor: torch.Tensor) -> None:
        """Takes the tensor "<kind>.<attribute>" of `compressed_tensors`."""
        kind, _, attribute = name.partition(".")
        getattr(self, attribute)[kind] = tensor


def is_compressed(layer_class: type) -> bool:
    """Whether it is the class of a compressed layer's cache, transformers' own or this module's."""
    return layer_class is CompressedLayer or hasattr(layer_class, "store_compression_weights")


def compressed_tensors(layer: Any) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(name, what its size on axis 1 is called or "", tensor) of what a compressed layer holds beside keys and values.

    compressed_kv: an entry for each full window. buffer_kv, buffer_gate: of tokens of the window that is not full.
    overlap_kv, overlap_gate: of the last full window, for the next one; zeros before there is one.
    """
    for kind in _KINDS:
        entries = layer.compressed_kv.get(kind)
        if entries is None:
            continue
        yield f"{kind}.compressed_kv", "windows", entries
        yield f"{kind}.buffer_kv", "remainder", layer.buffer_kv[kind]
        yield f"{kind}.buffer_gate", "remainder", layer.buffer_gate[kind]
        overlap_kv, overlap_gate = (getattr(layer, name, {}) for name in ("overlap_kv", "overlap_gate"))
        if kind in overlap_kv:
            shape = (entries.shape[0], getattr(layer, "compress_rate", 0), entries.shape[2])
            zeros = (torch.zeros(shape, dtype=entries.dtype), torch.zeros(shape))
            for name, states, empty in zip(("kv", "gate"), (overlap_kv, overlap_gate), zeros, strict=True):
                yield f"{kind}.overlap_{name}", "", empty if states[kind] is None else states[kind]


@contextmanager
def exportable_compression(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block, compressed attention of `model` runs over a sequence of any length, from its cache."""
    with ExitStack() as stack:
        for child in model.modules():
            forward = _FORWARDS.get(type(child).__name__)
            if forward is not None:
                stack.enter_context(replace_forward(child, partial(forward, child)))
        yield


def _close_windows(module: Any, layer: Any, kind: str, hidden_states: torch.Tensor) -> torch.Tensor:
    """All entries [B, T, D] after the tokens `hidden_states`; what does not fill a window stays in `layer`."""
    rate, batch = module.compress_rate, hidden_states.shape[0]
    kv = torch.cat([layer.buffer_kv[kind], module.kv_proj(hidden_states)], dim=1)
    gate = torch.cat([layer.buffer_gate[kind], module.gate_proj(hidden_states)], dim=1)
    count, first = kv.shape[1] // rate, layer.compressed_kv[kind].shape[1]
    layer.buffer_kv[kind], layer.buffer_gate[kind] = kv[:, count * rate :], gate[:, count * rate :]
    windows = kv[:, : count * rate].reshape(batch, count, rate, kv.shape[2])
    gates = gate[:, : count * rate].reshape(batch, count, rate, kv.shape[2]) + module.position_bias
    numbers = torch.arange(first, first + count)
    if kind in layer.overlap_kv:
        windows, gates = _with_previous(layer, kind, windows, gates, numbers)
    weights = gates.softmax(dim=2, dtype=torch.float32).to(windows.dtype)
    # One more is rotated and dropped: ONNX's Reshape takes a size of zero for another one.
    entries = _with_sentinel(module.kv_norm((windows * weights).sum(dim=2)))
    positions = (torch.arange(first, first + count + 1) * rate).unsqueeze(0).expand(batch, -1)
    cosine, sine = module.rotary_emb(entries, position_ids=positions, layer_type=module.rope_layer_type)
    entries = _rotation(module)(entries.unsqueeze(1), cosine, sine).squeeze(1)[:, :count]
    every_entry = torch.cat([layer.compressed_kv[kind], entries], dim=1)
    layer.compressed_kv[kind] = every_entry
    return every_entry


def _with_previous(
    layer: Any, kind: str, windows: torch.Tensor, gates: torch.Tensor, numbers: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of twice the width: the half of the features of the one before that is meant for the next, and their own
    other half.
    """
    width = windows.shape[-1] // 2
    kv = torch.cat([layer.overlap_kv[kind].unsqueeze(1), windows[..., :width]], dim=1)
    gate = torch.cat([layer.overlap_gate[kind].unsqueeze(1), gates[..., :width]], dim=1)
    layer.overlap_kv[kind], layer.overlap_gate[kind] = kv[:, -1], gate[:, -1]
    is_first = (numbers == 0).view(1, -1, 1, 1)  # of all: there is none before it
    previous_gate = gate[:, :-1].masked_fill(is_first, -math.inf)
    return (
        torch.cat([kv[:, :-1], windows[..., width:]], dim=2),
        torch.cat([previous_gate, gates[..., width:]], dim=2),
    )


def _rotation(module: Any) -> Callable[..., torch.Tensor]:
    rotate: Callable[..., torch.Tensor] = sys.modules[type(module).__module__].apply_rotary_pos_emb
    return rotate


def _with_sentinel(entries: torch.Tensor) -> torch.Tensor:
    """[B, T + 1, D]: one more entry, which nobody attends to, so that there always is one."""
    return F.pad(entries, (0, 0, 0, 1))


def _unseen(module: Any, position_ids: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """[B, S, T + 1]: entries with the sentinel whose windows are not over at a token's position."""
    numbers = torch.arange(entries.shape[1])
    unseen: torch.Tensor = numbers >= ((position_ids + 1) // module.compress_rate).unsqueeze(-1)
    return unseen


def _heavily_compressed(
    module: Any, hidden_states: torch.Tensor, _query: torch.Tensor, position_ids: torch.Tensor, cache: Any, index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """For DeepseekV4HCACompressor: entries [B, 1, T + 1, D] and what is added to their scores [B, 1, S, T + 1]."""
    entries = _with_sentinel(_close_windows(module, cache.layers[index], "compressor", hidden_states))
    several = torch.ones_like(position_ids[0]).sum() > 1  # a single token sees all entries, wherever padding puts it
    is_sentinel = torch.arange(entries.shape[1]) == entries.shape[1] - 1
    hidden = (_unseen(module, position_ids, entries) & several) | is_sentinel
    bias = torch.zeros_like(hidden, dtype=entries.dtype).masked_fill(hidden, -math.inf)
    return entries.unsqueeze(1), bias.unsqueeze(1)


def _sparse(
    module: Any, hidden_states: torch.Tensor, query: torch.Tensor, position_ids: torch.Tensor, cache: Any, index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """For DeepseekV4CSACompressor: the same, of entries that the indexer chooses for each token."""
    entries = _with_sentinel(_close_windows(module, cache.layers[index], "compressor", hidden_states))
    chosen = module.indexer(hidden_states, query, position_ids, cache, index)
    last = entries.shape[1] - 1
    shape = (*position_ids.shape, entries.shape[1])
    bias = torch.full(shape, -math.inf, dtype=entries.dtype).scatter(-1, chosen, 0.0)
    bias = bias.masked_fill(torch.arange(entries.shape[1]) == last, -math.inf)
    return entries.unsqueeze(1), bias.unsqueeze(1)


def _choose(
    module: Any, hidden_states: torch.Tensor, query: torch.Tensor, position_ids: torch.Tensor, cache: Any, index: int
) -> torch.Tensor:
    """For DeepseekV4Indexer: numbers [B, S, k] of entries, the sentinel's where there are fewer."""
    entries = _with_sentinel(_close_windows(module, cache.layers[index], "indexer", hidden_states))
    cosine, sine = module.rotary_emb(hidden_states, position_ids=position_ids, layer_type=module.rope_layer_type)
    queries = module.q_b_proj(query).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
    queries = _rotation(module)(queries, cosine, sine).transpose(1, 2)
    unseen = _unseen(module, position_ids, entries)
    scores = module.scorer(queries, entries, hidden_states).masked_fill(unseen, -math.inf)
    chosen = scores.topk(torch.sym_min(module.index_topk, entries.shape[1]), dim=-1).indices
    return torch.where(unseen.gather(-1, chosen), entries.shape[1] - 1, chosen)


_FORWARDS: dict[str, Callable[..., Any]] = {
    "DeepseekV4HCACompressor": _heavily_compressed,
    "DeepseekV4CSACompressor": _sparse,
    "DeepseekV4Indexer": _choose,
}
