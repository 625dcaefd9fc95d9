"""The sizes of a trace that is read: what the caller says, what the file says, what its numbers show."""

from __future__ import annotations

from pathlib import Path

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.trace import Call, RoutingTrace


class TraceSizes:
    """Sizes as the caller gave them, else as the file's header says, else as its numbers show."""

    def __init__(self, num_experts: int | None, num_layers: int | None, top_k: int | None) -> None:
        self.num_experts, self.num_layers, self.top_k = num_experts, num_layers, top_k

    def suggest(self, **sizes: int) -> None:
        """Takes over what is not known yet."""
        for name, value in sizes.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def agree(self, path: Path, **sizes: int) -> None:
        """What the file itself is sure of: InvalidInputError where the caller said something else."""
        for name, value in sizes.items():
            given = getattr(self, name)
            if given is not None and given != value:
                raise InvalidInputError(f"{path} has {name} {value}, but {given} was given: leave it out.")
            setattr(self, name, value)

    def trace(self, calls: list[Call], path: Path, names: list[str] | None = None) -> RoutingTrace:
        """The trace of calls. Raises InvalidInputError that names the file."""
        if not calls:
            raise InvalidInputError(f"{path} holds no routing.")
        if names is not None:
            self.agree(path, num_layers=len(names))
        if self.top_k is not None and any(call.expert_ids.shape[1] != self.top_k for call in calls):
            raise InvalidInputError(
                f"{path} has calls of another top_k than {self.top_k}: leave it out, or mend the file."
            )
        some = sum(call.expert_weights is not None for call in calls)
        if 0 < some < len(calls):
            raise InvalidInputError(
                f"{path} has weights in {some} of {len(calls)} calls: give them in all, or in none."
            )
        layers = self.num_layers or 1 + max(call.layer for call in calls)
        experts = self.num_experts or 1 + max(int(call.expert_ids.max(initial=0)) for call in calls)
        try:
            return RoutingTrace.of_calls(calls, experts, names or layers)
        except InvalidInputError as error:
            raise InvalidInputError(f"{path}: {error}") from error
