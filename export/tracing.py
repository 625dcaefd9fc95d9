"""Parts of transformers' models that torch.export would tie to the example's sizes, made free of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from onnx_moe.export.patching import home_modules, replace_attribute
from onnx_moe.export.recurrences import exportable_recurrences


@contextmanager
def traceable(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block, `model` can be traced for sequences of any length."""
    with ExitStack() as stack:
        stack.enter_context(exportable_recurrences(model))
        for module in home_modules(model):
            # An indexer takes min(index_topk, tokens so far): Python's min would decide it for the example.
            if module.__name__.startswith("transformers.models."):
                stack.enter_context(replace_attribute(module, "min", _minimum))
        yield


def _minimum(*values: object) -> object:
    symbolic = len(values) == 2 and any(isinstance(value, torch.SymInt) for value in values)
    return torch.sym_min(*values) if symbolic else min(*values)  # type: ignore[type-var]
