"""Calling experts, whatever they are: functions, modules, lists of either."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from onnx_moe.errors import InvalidInputError

#: Rows [n, H] of an expert, and its id if it takes one → [n, N].
Expert: TypeAlias = Callable[..., Any]
#: One for all experts, or one for each.
Experts: TypeAlias = Expert | Sequence[Expert]


def function_of(experts: Experts, num_experts: int | None = None) -> Callable[[Any, int], Any]:
    """A function of (rows, expert id) that calls the right expert. Raises InvalidInputError for a list of fewer than
    num_experts, and for what is neither function nor list; None: a list is none of those.
    """
    if _is_function(experts):
        return _with_id(experts)  # type: ignore[arg-type]
    if num_experts is None or not (hasattr(experts, "__len__") and hasattr(experts, "__getitem__")):
        raise _no_expert(experts)
    if len(experts) < num_experts:
        given = len(experts)
        raise InvalidInputError(f"{given} experts were given, but ids go to {num_experts - 1}: give them all.")
    functions = [_with_id(experts[expert]) for expert in range(num_experts)]
    return lambda rows, expert: functions[expert](rows, expert)


def _no_expert(given: Any) -> InvalidInputError:
    return InvalidInputError(f"an expert is a {type(given).__name__}: pass a function or module of the rows.")


def _is_function(experts: Any) -> bool:
    """A torch.nn.Sequential, which has items too, is one function; a torch.nn.ModuleList computes nothing itself."""
    torch = sys.modules.get("torch")
    return callable(experts) and not (torch is not None and isinstance(experts, torch.nn.ModuleList))


def _with_id(function: Expert) -> Callable[[Any, int], Any]:
    if not callable(function):
        raise _no_expert(function)
    return function if _takes_an_id(function) else lambda rows, _expert: function(rows)


def _takes_an_id(function: Expert) -> bool:
    """Whether the second parameter wants the id: one that must be given, or that is called expert_id.

    Asked of the signature (a module's forward, for its __call__ takes anything), so that no TypeError of the function's
    own is hidden and no default of its own is overwritten.
    """
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    except ValueError:  # a built-in, which knows of no experts
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [each for each in parameters if each.kind in kinds]
    if len(positional) < 2:
        return False
    return positional[1].default is inspect.Parameter.empty or positional[1].name == "expert_id"
