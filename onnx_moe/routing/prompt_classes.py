"""Requests of several kinds apart: how far the routing of one is from that of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_moe.routing.trace import RoutingTrace


@dataclass(frozen=True)
class PromptClasses:
    """Requests of several kinds apart, as of several texts: names [C], tokens [C, L] and counts [C, L, E]."""

    names: tuple[str, ...]
    tokens: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, trace: RoutingTrace, class_of_request: Mapping[int, str]) -> PromptClasses | None:
        """Of a trace, by its requests; None for fewer than two classes."""
        names = tuple(dict.fromkeys(class_of_request.values()))
        if len(names) < 2:
            return None
        sizes = (len(names), trace.num_layers, trace.num_experts)
        tokens, counts = np.zeros(sizes[:2], np.int64), np.zeros(sizes, np.int64)
        number = {request: names.index(name) for request, name in class_of_request.items()}
        classes = np.array([number.get(int(request), -1) for request in trace.requests])
        for index in range(len(names)):
            part = trace.select(classes == index)
            layers = np.repeat(part.layers, np.diff(part.offsets)).astype(np.int64)
            keys = layers * trace.num_experts + part.experts
            counts[index] = np.bincount(keys, minlength=counts[index].size).reshape(sizes[1:])
            np.add.at(tokens[index], part.layers, part.tokens_of_calls)
        return cls(names, tokens, counts)

    def merge(self, later: PromptClasses) -> PromptClasses:
        """Both, classes of one name added up."""
        names = tuple(dict.fromkeys((*self.names, *later.names)))
        merged = PromptClasses(
            names,
            np.zeros((len(names), *self.tokens.shape[1:]), np.int64),
            np.zeros((len(names), *self.counts.shape[1:]), np.int64),
        )
        for classes in (self, later):
            for index, name in enumerate(classes.names):
                merged.tokens[names.index(name)] += classes.tokens[index]
                merged.counts[names.index(name)] += classes.counts[index]
        return merged
