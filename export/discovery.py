"""Finding a module's MoE layers: its experts, the router that feeds each, shared experts that can ride along."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from onnx_moe.errors import ExportError
from onnx_moe.export.adapters import find_adapter
from onnx_moe.export.layers import ExpertLayer, SharedExpert, zero_experts
from onnx_moe.export.patching import is_weightless, random_copy, replace_forward
from onnx_moe.export.routers import NoMatch, RouterMatch, match_router

logger = logging.getLogger("onnx_moe")


@dataclass
class MoELayer:
    """One MoE layer of a module: where it is, what its experts are, what feeds them."""

    path: str
    experts_module: torch.nn.Module
    experts: ExpertLayer
    top_k: int
    router_path: str | None = None
    router_module: torch.nn.Module | None = None
    router: RouterMatch | NoMatch = field(default_factory=lambda: NoMatch("no module's outputs feed the experts"))
    shared_module: torch.nn.Module | None = None
    shared: SharedExpert | None = None


def find_layers(
    module: torch.nn.Module, run: Callable[[], object], fold_shared_experts: bool, every: bool = True
) -> list[MoELayer]:
    """The MoE layers that `run()`, a call of `module`, goes through, in the order of the module tree.

    every: raise ExportError for a layer that it does not go through; else such a layer, which no graph of the call
    would hold, is left out: a multimodal model's experts for images, in a decoder of text.

    The call is made with experts that return zeros: it shows which tensors reach the experts, not what comes out.
    """
    adapters = {path: (found, find_adapter(found)) for path, found in module.named_modules()}
    experts = {path: adapter(found) for path, (found, adapter) in adapters.items() if adapter is not None}
    if not experts:
        raise ExportError(
            f"{type(module).__name__} holds no MoE layer that is known: experts modules of transformers ≥ 5 and "
            "onnx_moe.nn.SparseMoE are; for another class, call onnx_moe.export.register_adapter."
        )
    calls = _record_calls(module, experts, run)
    layers = []
    for path, description in experts.items():
        if path not in calls and not every:
            logger.info("%s: tokens do not reach these experts; they are left out.", path)
            continue
        if path not in calls:
            raise ExportError(
                f"The example inputs do not reach the experts {path or type(module).__name__!r}: choose inputs that "
                "run every layer."
            )
        layers.append(_describe(module, path, description, calls[path], fold_shared_experts))
    return layers


@dataclass
class _Call:
    """A call of an experts module, and the router's outputs that its arguments are."""

    top_k: int
    router_path: str | None
    output: tuple[str, ...]


def _record_calls(
    module: torch.nn.Module, experts: dict[str, ExpertLayer], run: Callable[[], object]
) -> dict[str, _Call]:
    # Tensors are recognised by identity, so all of them are kept alive until the end.
    producers: dict[int, tuple[str, int, int]] = {}
    keep: list[Any] = []
    calls: dict[str, _Call] = {}

    def remember(path: str) -> Callable[[torch.nn.Module, Any, Any], None]:
        def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, tuple | list):
                keep.append(output)
                for index, tensor in enumerate(output):
                    if isinstance(tensor, torch.Tensor):
                        producers[id(tensor)] = (path, index, len(output))

        return hook

    def stub(path: str) -> Callable[..., Any]:
        def record(hidden_states: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
            tensors = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor)]
            if path not in calls or calls[path].top_k == 0:
                calls[path] = _describe_call(tensors, producers)
            return zero_experts(hidden_states, *arguments, **keywords)

        def forward(*arguments: Any, **keywords: Any) -> Any:
            record(*arguments, **keywords)  # what the module is given: its forward may make other ids of it
            return experts[path].forward_with(record)(*arguments, **keywords)

        return forward

    with ExitStack() as stack:
        for path, child in module.named_modules():
            handle = child.register_forward_hook(remember(path))
            stack.callback(handle.remove)
        for path in experts:
            stack.enter_context(replace_forward(module.get_submodule(path), stub(path)))
        _run_examples(module, run)
    return calls


def _run_examples(module: torch.nn.Module, run: Callable[[], object]) -> None:
    try:
        with torch.no_grad():
            run()
    except Exception as error:  # whatever the module raises
        raise ExportError(
            f"{type(module).__name__} does not run on the example inputs: {error}. Pass inputs that it takes."
        ) from error


def _describe_call(tensors: Sequence[torch.Tensor], producers: dict[int, tuple[str, int, int]]) -> _Call:
    """What feeds experts that are called with `tensors` beside the hidden states."""
    ids = next((tensor for tensor in tensors if not tensor.is_floating_point()), None)
    weights = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    top_k = 0 if ids is None else int(ids.shape[-1])
    source = producers.get(id(ids)) if ids is not None else None
    weight_source = producers.get(id(weights)) if weights is not None else None
    if source is None or weight_source is None or source[0] != weight_source[0]:
        return _Call(top_k, None, ())
    path, index, count = source
    output = ["logits"] * count
    output[index], output[weight_source[1]] = "ids", "weights"
    return _Call(top_k, path, tuple(output))


def _describe(
    module: torch.nn.Module, path: str, experts: ExpertLayer, call: _Call, fold_shared_experts: bool
) -> MoELayer:
    layer = MoELayer(path, module.get_submodule(path), experts, call.top_k)
    if call.router_path is not None:
        layer.router_path = call.router_path
        layer.router_module = module.get_submodule(call.router_path)
        layer.router = match_router(layer.router_module, call.output)
    if isinstance(layer.router, NoMatch):
        logger.info("%s: its router becomes ordinary ops: %s.", path or "module", layer.router.reason)
    elif fold_shared_experts and path:
        _find_shared_expert(module.get_submodule(path.rpartition(".")[0]), layer)
    return layer


def _find_shared_expert(block: torch.nn.Module, layer: MoELayer) -> None:
    """Fills in the shared experts of `block` if they are routed experts in all but routing."""
    shared = getattr(block, "shared_experts", None)
    names = ("gate_proj", "up_proj", "down_proj")
    if not isinstance(shared, torch.nn.Module) or not all(hasattr(shared, name) for name in names):
        return
    linear = [getattr(shared, name) for name in names]
    plain = all(isinstance(child, torch.nn.Linear) and child.bias is None for child in linear)
    rows = layer.experts.up.matrix.shape[1] // 2
    activation = layer.experts.activation
    fits = (
        plain
        and linear[0].weight.shape[0] % rows == 0
        and linear[0].weight.shape[1] == layer.experts.up.matrix.shape[2]
    )
    if not fits or not activation.get("gated") or layer.experts.up.bias is not None:
        return
    if activation.get("gate_layout") != "concatenated" or layer.experts.up.transposed:
        return
    probe = random_copy(block, layer.experts_module) if is_weightless(block) else block
    experts = probe.get_submodule(layer.path.rpartition(".")[2])
    if not _is_added(probe, experts) or not _same_activation(probe.shared_experts, activation):
        logger.info("%s: the shared experts stay ordinary ops: the block does more than add them.", layer.path)
        return
    layer.shared_module = shared
    gate, up, down = (child.weight for child in linear)
    layer.shared = SharedExpert(gate, up, down, gate.shape[0] // rows)


def _is_added(block: Any, experts: torch.nn.Module) -> bool:
    """Whether block(x) = routed(x) + shared(x): tried with made-up routed experts."""
    shared = block.shared_experts
    hidden_size = shared.down_proj.weight.shape[0]
    generator = torch.Generator().manual_seed(2)
    parameter = next(shared.parameters())
    x = torch.randn(1, 3, hidden_size, generator=generator).to(parameter.dtype)
    routed = torch.randn(3, hidden_size, generator=generator).to(parameter.dtype)

    def made_up(*_arguments: Any, **_keywords: Any) -> torch.Tensor:
        return routed

    try:
        with torch.no_grad(), replace_forward(experts, made_up):
            output = block(x)
            with replace_forward(shared, lambda *_arguments, **_keywords: 0):
                block(x)  # as it will run once its shared experts ride with the others
    except Exception as error:  # a block may want other inputs, or more of its shared experts than a sum
        name = type(block).__name__
        logger.info("%s does not run on hidden states and routed experts alone: %s.", name, error)
        return False
    output = output[0] if isinstance(output, tuple) else output
    with torch.no_grad():
        expected = routed.view_as(x) + shared(x)
    return bool(torch.allclose(output, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())))


def _same_activation(shared: Any, activation: dict[str, Any]) -> bool:
    """Whether the shared expert is down(act(gate) · up) with the routed experts' activation."""
    from onnx_moe.operators import expert_gemm_attributes
    from onnx_moe.reference.expert_gemm import activate

    gate, up, down = shared.gate_proj, shared.up_proj, shared.down_proj
    x = torch.randn(3, gate.weight.shape[1], generator=torch.Generator().manual_seed(3)).to(gate.weight.dtype)
    with torch.no_grad():
        products = torch.cat([gate(x), up(x)], dim=-1)
        expected = down(activate(products, expert_gemm_attributes(activation)))
        actual = shared(x)
    return bool(torch.allclose(actual, expected, rtol=1e-2, atol=1e-2 * float(actual.abs().max())))
