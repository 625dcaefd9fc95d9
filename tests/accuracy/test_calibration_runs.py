"""What experts see of a calibration text: runs that go on from layer to layer find what whole runs find."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from onnx_moe.errors import ExportError
from onnx_moe.export.calibration_activations import Recorder
from onnx_moe.export.discovery import MoELayer, find_layers
from onnx_moe.nn import SparseMoE

HIDDEN, LAYERS, TEXTS = 64, 4, 5


class Block(torch.nn.Module):
    """x + MoE(mix(x)); with `remembers`, the mix also depends on what the block before left in `memory`."""

    def __init__(self, index: int, calls: Counter[int], memory: list[torch.Tensor], remembers: bool) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(HIDDEN, HIDDEN)
        self.moe = SparseMoE(hidden_size=HIDDEN, intermediate_size=32, num_experts=4, top_k=2)
        self.index, self.calls, self.memory, self.remembers = index, calls, memory, remembers

    def forward(self, hidden_states: torch.Tensor, scale: float) -> torch.Tensor:
        self.calls[self.index] += 1
        mixed = self.mix(hidden_states) * scale
        if self.remembers:
            mixed = mixed + self.memory[-1]
            self.memory[-1] = mixed
        result: torch.Tensor = hidden_states + self.moe(mixed)
        return result


class Stack(torch.nn.Module):
    def __init__(self, remembers: bool, named: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.calls: Counter[int] = Counter()
        self.memory: list[torch.Tensor] = []
        self.blocks = torch.nn.ModuleList(Block(index, self.calls, self.memory, remembers) for index in range(LAYERS))
        self.named = named

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.memory[:] = [torch.zeros(())]
        for index, block in enumerate(self.blocks):
            x = block(hidden_states=x, scale=index + 1.0) if self.named else block(x, index + 1.0)
        return x


def stack_and_layers(remembers: bool = False, named: bool = False) -> tuple[Stack, list[MoELayer], list[torch.Tensor]]:
    stack = Stack(remembers, named).eval()
    texts = list(torch.randn(TEXTS, 1, 7, HIDDEN, generator=torch.Generator().manual_seed(1)))
    layers = find_layers(stack, lambda: stack(texts[0]), False)
    stack.calls.clear()
    return stack, layers, texts


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("remembers", [False, True])
def test_going_on_finds_what_whole_runs_find(remembers: bool, named: bool) -> None:
    stack, layers, texts = stack_and_layers(remembers, named)
    runs = [lambda x=text: stack(x) for text in texts]
    recorder = Recorder(stack, layers, runs)
    for layer in layers:
        found, whole = recorder.record(layer), Recorder(stack, layers, runs).record(layer)
        assert len(found.hidden_states) == 7 * TEXTS
        torch.testing.assert_close(found.hidden_states, whole.hidden_states)
        torch.testing.assert_close(found.expert_ids, whole.expert_ids)
        torch.testing.assert_close(found.expert_weights, whole.expert_weights)


def test_layers_before_are_not_run_again() -> None:
    stack, layers, texts = stack_and_layers()
    recorder = Recorder(stack, layers, [lambda x=text: stack(x) for text in texts])
    for layer in layers:
        recorder.record(layer)
    # Each text: the layer that is reached, and once more when the next one is. One text of each further layer: from the
    # start, to compare, and from where it ended.
    assert stack.calls[0] == TEXTS + (TEXTS + 1) + (LAYERS - 1)
    assert sum(stack.calls.values()) < 2 * LAYERS * TEXTS + 2 * LAYERS**2
    assert not any("forward" in vars(block) for block in stack.blocks)


def test_weights_that_change_between_layers_are_seen() -> None:
    stack, layers, texts = stack_and_layers()
    runs = [lambda x=text: stack(x) for text in texts]
    recorder = Recorder(stack, layers, runs)
    recorder.record(layers[0])
    with torch.no_grad():
        next(layers[0].experts_module.parameters()).mul_(2)
    changed = recorder.record(layers[1]).hidden_states
    torch.testing.assert_close(changed, Recorder(stack, layers, runs).record(layers[1]).hidden_states)


def test_what_is_not_finite_is_an_error() -> None:
    stack, layers, texts = stack_and_layers()
    with pytest.raises(ExportError, match=r"'blocks.0.moe.*' is not finite"):
        Recorder(stack, layers, [lambda: stack(texts[0] * torch.inf)]).record(layers[0])
