"""The model that an exported one was made from, in float32, and what passes through its MoE layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_moe.accuracy.exported import LayerRun
from onnx_moe.errors import InvalidModelError
from onnx_moe.export.discovery import MoELayer, find_layers
from onnx_moe.export.experts import routed_and_shared
from onnx_moe.export.patching import replace_forward
from onnx_moe.export.routers import RouterMatch
from onnx_moe.operators import expert_gemm_attributes
from onnx_moe.reference.expert_gemm import activate


class ReferenceModel:
    """A causal language model of transformers, its MoE layers found as the exporter finds them."""

    def __init__(self, folder: Path, fold_shared_experts: bool) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not folder.is_dir():
            raise InvalidModelError(
                f"{folder} is not a folder: give --reference the folder that the model was exported from."
            )
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise InvalidModelError(
                f"{folder} holds no model that transformers reads: {error}. Give --reference the folder that the model "
                "was exported from."
            ) from error
        self.module: Any = model.eval()
        if hasattr(self.module, "set_experts_implementation"):
            self.module.set_experts_implementation("eager")  # the quickest of them on a CPU
        probe = torch.ones(1, 2, dtype=torch.long)
        self.layers = find_layers(self.module, lambda: self.module(input_ids=probe), fold_shared_experts)

    def run(
        self, input_ids: NDArray[np.int64], layers: Sequence[MoELayer] | None = None
    ) -> tuple[NDArray[np.float32], list[LayerRun]]:
        """Logits [B, S, V] of token ids [B, S], and what each of `layers` did, by default the model's own."""
        layers = self.layers if layers is None else layers
        calls: list[_Call] = [_Call() for _ in layers]
        with ExitStack() as stack, torch.inference_mode():
            for layer, call in zip(layers, calls, strict=True):
                stack.enter_context(_observe(layer, call))
                decoder_layer = self.module.get_submodule(_decoder_layer(layer.path))
                stack.callback(decoder_layer.register_forward_hook(call.keep_stream).remove)
            logits = self.module(input_ids=torch.from_numpy(input_ids), use_cache=False).logits
        return logits.float().numpy(), [call.result() for call in calls]

    def route(self, layer: MoELayer, x: NDArray[np.float32]) -> NDArray[np.int64] | None:
        """The experts [T, k] that the layer's own router chooses for rows x; None where it is ordinary operators."""
        if layer.router_module is None or not isinstance(layer.router, RouterMatch):
            return None
        rows = torch.from_numpy(x)
        with torch.inference_mode():
            output = layer.router_module(rows[None])
        ids: torch.Tensor = output[layer.router.output.index("ids")]
        return ids.reshape(len(rows), -1).numpy().astype(np.int64)


def _decoder_layer(path: str) -> str:
    """…layers.3 of …layers.3.mlp.experts."""
    parts = path.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        raise InvalidModelError(
            f"The experts {path!r} lie in no numbered layer: this model cannot be compared by layers."
        )
    return ".".join(parts[: numbers[-1] + 1])


class _Call:
    """What one layer's experts got and gave."""

    def __init__(self) -> None:
        self.inputs: tuple[torch.Tensor, ...] = ()
        self.output: torch.Tensor | None = None
        self.shared: torch.Tensor | None = None
        self.stream: torch.Tensor | None = None

    def keep_stream(self, _module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        self.stream = output[0] if isinstance(output, tuple) else output

    def keep_shared(self, _module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        self.shared = output

    def result(self) -> LayerRun:
        x, ids, weights = self.inputs
        assert self.output is not None
        assert self.stream is not None
        y = self.output.reshape(-1, self.output.shape[-1])
        if self.shared is not None:
            y = y + self.shared.reshape(y.shape)
        rows = (ids.reshape(len(y), -1), weights.reshape(len(y), -1))
        return LayerRun(
            x.reshape(len(y), -1).float().numpy(),
            rows[0].numpy().astype(np.int64),
            rows[1].float().numpy(),
            y.numpy(),
            self.stream.reshape(len(y), -1).float().numpy(),
        )


@contextmanager
def _observe(layer: MoELayer, call: _Call) -> Iterator[None]:
    own = layer.experts_module.forward

    def forward(*arguments: Any, **keywords: Any) -> torch.Tensor:
        values = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor)]
        ids = next(value for value in values[1:] if not value.is_floating_point())
        weights = next(value for value in values[1:] if value.is_floating_point())
        call.inputs = (values[0], ids, weights)
        call.output = own(*arguments, **keywords)
        return call.output

    with ExitStack() as stack:
        stack.enter_context(replace_forward(layer.experts_module, forward))
        if layer.shared_module is not None:
            stack.callback(layer.shared_module.register_forward_hook(call.keep_shared).remove)
        yield


def original_matrices(layer: MoELayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Both products' weights [E, N, K] in float32, shared experts last."""
    up, down = routed_and_shared(layer)
    return torch.cat(up).float(), torch.cat(down).float()


def activation_of(layer: MoELayer) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the layer's experts do between their products."""
    if layer.experts.gate is not None:
        return layer.experts.gate
    attributes = expert_gemm_attributes(layer.experts.activation)
    return lambda products: activate(products, attributes)
