"""What the experts of a layer see when a module reads a calibration text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from onnx_moe.errors import ExportError
from onnx_moe.export.discovery import MoELayer
from onnx_moe.export.patching import replace_forward

#: What a run that goes on in the middle may differ from a whole one, relative: only the order of sums differs.
_SAME = 1e-4


@dataclass(frozen=True)
class Activations:
    """Tokens that reached a layer's experts: hidden_states [T, H], expert_ids [T, k], expert_weights [T, k]."""

    hidden_states: torch.Tensor
    expert_ids: torch.Tensor
    expert_weights: torch.Tensor

    def routed_to(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens [n] that the router sent to `expert`, and the weight [n] of its output in each."""
        tokens, slots = (self.expert_ids == expert).nonzero(as_tuple=True)
        return tokens, self.expert_weights[tokens, slots]


class _LayerReached(Exception):
    """The layer of interest was called: the rest of the module need not run."""


class Recorder:
    """Runs of a module up to one of its MoE layers after the other.

    A run goes on from the decoder layer that the one before it ended in, so that all of them together cost little more
    than one whole run. That takes a module whose layers lie in a ModuleList and pass on nothing but hidden states: of
    each layer, the first run is made from the start too, and where the two differ, so are all others from then on.
    """

    def __init__(self, module: torch.nn.Module, layers: Sequence[MoELayer], runs: Sequence[Callable[[], object]]):
        self._runs = runs
        self._blocks = _find_blocks(module, [layer.path for layer in layers])
        self._reached = 0
        self._inputs: list[torch.Tensor] = []

    def record(self, layer: MoELayer) -> Activations:
        """What reaches the experts of `layer`; each run ends there."""
        block = self._block_of(layer)
        if self._inputs and not (self._reached <= block and self._goes_on(layer, block)):
            self._blocks, self._inputs = None, []
        parts = [self._run(layer, block, index) for index in range(len(self._runs))]
        if not parts:
            raise ExportError("The calibration text holds no tokens: give a longer one.")
        found = Activations(*(torch.cat(tensors) for tensors in zip(*(part.tensors for part in parts), strict=True)))
        if not found.hidden_states.isfinite().all():
            raise ExportError(
                f"What reaches the experts {layer.path or 'of the module'!r} is not finite: load the model in float32 "
                "or bfloat16 to calibrate it."
            )
        inputs = [part.block_input for part in parts if part.block_input is not None]
        self._reached, self._inputs = block, inputs if len(inputs) == len(parts) else []
        return found

    def _block_of(self, layer: MoELayer) -> int:
        if self._blocks is None:
            return 0
        return next(
            index
            for index, block in enumerate(self._blocks)
            if any(child is layer.experts_module for child in block.modules())
        )

    def _goes_on(self, layer: MoELayer, block: int) -> bool:
        """Whether the first run makes of what was kept what it makes from the start."""
        try:
            kept = self._run(layer, block, 0)
        except Exception:  # whatever a layer raises that misses what a skipped one would have passed on
            return False
        inputs, self._inputs = self._inputs, []
        whole = self._run(layer, block, 0)
        self._inputs = inputs
        difference = kept.tensors[0] - whole.tensors[0]
        return bool(difference.norm() <= _SAME * whole.tensors[0].norm())

    def _run(self, layer: MoELayer, block: int, index: int) -> _Run:
        found = _Run()
        with torch.no_grad(), _replaced_experts(layer, found), self._going_on(block, index, found):
            try:
                self._runs[index]()
            except _LayerReached:
                return found
        raise ExportError(
            f"A calibration input does not reach the experts {layer.path or 'of the module'!r}: use inputs that "
            "run every layer."
        )

    @contextmanager
    def _going_on(self, block: int, index: int, found: _Run) -> Iterator[None]:
        """Skips the blocks before the one reached, gives that one what it got before, and keeps what `block` gets."""
        if self._blocks is None:
            yield
            return
        with ExitStack() as stack:
            if self._inputs:
                for skipped in list(self._blocks)[: self._reached]:
                    stack.enter_context(replace_forward(skipped, _pass_on))
                stack.enter_context(_change_input(self._blocks[self._reached], lambda _: self._inputs[index]))
            stack.enter_context(_change_input(self._blocks[block], found.keep_input))
            yield


class _Run:
    """What one run found: the experts' arguments, and the input of the block that they lie in."""

    def __init__(self) -> None:
        self.tensors: tuple[torch.Tensor, ...] = ()
        self.block_input: torch.Tensor | None = None

    def keep_input(self, hidden: torch.Tensor) -> torch.Tensor:
        self.block_input = hidden.clone()
        return hidden


def _find_blocks(module: torch.nn.Module, paths: list[str]) -> torch.nn.ModuleList | None:
    """The outermost list of modules that every layer lies in."""
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.ModuleList) and all(path.startswith(f"{name}.") for path in paths):
            return child
    return None


def _pass_on(*arguments: Any, **keywords: Any) -> Any:
    return arguments[0] if arguments else keywords["hidden_states"]


@contextmanager
def _change_input(block: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """`block` gets `change` of its hidden states, the first of its arguments."""
    own = block.forward

    def forward(*arguments: Any, **keywords: Any) -> Any:
        if arguments:
            return own(change(arguments[0]), *arguments[1:], **keywords)
        if "hidden_states" in keywords:
            keywords["hidden_states"] = change(keywords["hidden_states"])
        return own(**keywords)

    with replace_forward(block, forward):
        yield


@contextmanager
def _replaced_experts(layer: MoELayer, found: _Run) -> Iterator[None]:
    """Calls of the layer's experts end the run."""

    def experts(hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1]).float()
        found.tensors = (rows, ids.reshape(len(rows), -1).long(), weights.reshape(len(rows), -1).float())
        raise _LayerReached

    outer = layer.experts.forward
    forward: Callable[..., Any] = experts if outer is None else lambda *a, **k: outer(experts, *a, **k)
    with replace_forward(layer.experts_module, forward):
        yield
