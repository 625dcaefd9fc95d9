"""What an export says of the layers that it found."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_moe.errors import ExportError
from onnx_moe.export.discovery import MoELayer
from onnx_moe.export.routers import RouterMatch


@dataclass(frozen=True)
class ExportedLayer:
    """One MoE layer of an exported model. router: its family, or "ordinary ops" and why."""

    path: str
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    shared_experts: int
    router: str


def describe_layer(layer: MoELayer) -> ExportedLayer:
    """What the report says of `layer`."""
    up, down = layer.experts.up.matrix, layer.experts.down.matrix
    router = layer.experts.router  # of a module that routes by itself
    if not router:
        match = layer.router
        router = match.family if isinstance(match, RouterMatch) else f"ordinary ops: {match.reason}"
    return ExportedLayer(
        path=layer.path,
        num_experts=layer.experts.num_experts,
        top_k=layer.top_k,
        hidden_size=int(up.shape[2]),
        intermediate_size=int(down.shape[2]),
        shared_experts=0 if layer.shared is None else layer.shared.count,
        router=router,
    )


def check_routers(layers: list[MoELayer]) -> None:
    """ExportError unless every router is a MoERouter, which has logits to show."""
    for layer in layers:
        if not isinstance(layer.router, RouterMatch):
            raise ExportError(
                f"router_logits: the router of {layer.path or 'the module'} becomes ordinary ops "
                f"({layer.router.reason}), so that it has no logits to show: leave router_logits out."
            )
