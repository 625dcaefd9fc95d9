"""Changes to a caller's module that are undone: forwards, parameters, element types."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor


@contextmanager
def replace_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` inside the block; of a module, a built-in function of that name is hidden by it."""
    had_own = name in owner.__dict__
    before = owner.__dict__.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def replace_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> AbstractContextManager[None]:
    """Calls of `module` run `forward` inside the block."""
    return replace_attribute(module, "forward", forward)


def home_modules(model: torch.nn.Module) -> set[ModuleType]:
    """The Python modules that define `model` and its parts."""
    return {sys.modules[type(child).__module__] for child in model.modules()}


@contextmanager
def replace_parameters(
    module: torch.nn.Module, buffers: dict[str, torch.Tensor], hidden: Sequence[torch.Tensor]
) -> Iterator[None]:
    """Hides `module`'s parameters and buffers `hidden` and gives it `buffers` instead, inside the block."""
    parameters, own_buffers = module._parameters, module._buffers
    gone = {id(tensor) for tensor in hidden}
    module._parameters = {name: tensor for name, tensor in parameters.items() if id(tensor) not in gone}
    kept = {name: tensor for name, tensor in own_buffers.items() if id(tensor) not in gone}
    module._buffers = {**kept, **buffers}
    try:
        yield
    finally:
        module._parameters, module._buffers = parameters, own_buffers


@contextmanager
def replace_data(values: dict[torch.Tensor, torch.Tensor]) -> Iterator[None]:
    """Gives each parameter or buffer of `values` other data, of whatever element type, inside the block."""
    before = {tensor: tensor.data for tensor in values}
    try:
        for tensor, value in values.items():
            tensor.data = value
        yield
    finally:
        for tensor, data in before.items():
            tensor.data = data


def is_weightless(module: torch.nn.Module) -> bool:
    """Whether `module` has parameters that hold no values: on the meta device, or fake."""
    return any(parameter.is_meta or isinstance(parameter, FakeTensor) for parameter in module.parameters())


def random_copy(module: torch.nn.Module, without: torch.nn.Module | None = None) -> Any:
    """A copy of a weightless `module` with random parameters on the CPU; those of its submodule `without` stay."""
    kept = set() if without is None else {id(parameter) for parameter in without.parameters()}
    generator = torch.Generator().manual_seed(4)
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        if id(parameter) in kept:
            memo[id(parameter)] = parameter
        else:
            values = torch.randn(parameter.shape, generator=generator) * 0.1
            memo[id(parameter)] = torch.nn.Parameter(values.to(parameter.dtype), requires_grad=False)
    return copy.deepcopy(module, memo)


@contextmanager
def in_float32(module: torch.nn.Module, example_inputs: Any) -> Iterator[Any]:
    """bfloat16 parameters, buffers and example inputs as float32 inside the block; yields the inputs.

    ONNX Runtime's CPU has no bfloat16 MatMul, so what stays outside the experts becomes float32.
    """
    with _views_copied(module):
        tensors = [*module.parameters(), *module.buffers()]
        values = {tensor: tensor.data.float() for tensor in tensors if tensor.dtype == torch.bfloat16}
        with replace_data(values):
            yield torch.utils._pytree.tree_map_only(
                torch.Tensor,
                lambda tensor: tensor.float() if tensor.dtype == torch.bfloat16 else tensor,
                example_inputs,
            )


@contextmanager
def _views_copied(module: torch.nn.Module) -> Iterator[None]:
    """Inside the block no buffer is a view of another tensor: torch.export would take that one's element type for it.

    Such are the buffers of one element that transformers loads from a checkpoint.
    """
    copies: dict[int, torch.Tensor] = {}
    before = [(child, dict(child._buffers)) for child in module.modules()]
    try:
        for child, buffers in before:
            for name, tensor in buffers.items():
                if tensor is not None and tensor._is_view():
                    child._buffers[name] = copies.setdefault(id(tensor), tensor.clone())
        yield
    finally:
        for child, buffers in before:
            child._buffers.update(buffers)
