"""Grouping the (token, slot) assignments by expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_moe import _native
from onnx_moe.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

    #: A numpy array or a Torch tensor.
    Array = np.ndarray[Any, Any] | torch.Tensor


@dataclass(frozen=True)
class DispatchInfo:
    """Assignments grouped by expert. A = num_tokens · top_k; all arrays are int64.

    sorted_token_indices, sorted_expert_slots [A]: token and slot of each assignment, in the order of the experts, of
    one expert in that of the tokens. expert_offsets [E + 1]: expert e has the assignments offsets[e] … offsets[e + 1].
    inverse_indices [A]: where the assignment (token, slot) = (i div top_k, i mod top_k) is in that order.
    """

    sorted_token_indices: Any
    sorted_expert_slots: Any
    expert_offsets: Any
    inverse_indices: Any
    num_tokens: int
    top_k: int
    num_experts: int

    @property
    def sorted_expert_indices(self) -> Any:
        """Another name of `sorted_expert_slots`."""
        return self.sorted_expert_slots

    @property
    def total_assignments(self) -> int:
        """num_tokens · top_k."""
        return self.num_tokens * self.top_k

    def expert_batch_size(self, expert_id: int) -> int:
        """Rows of an expert; InvalidInputError for an expert outside [0, num_experts)."""
        first, last = self.expert_range(expert_id)
        return last - first

    def expert_range(self, expert_id: int) -> tuple[int, int]:
        """First and last (exclusive) assignment of an expert; InvalidInputError for one outside [0, num_experts)."""
        if not 0 <= expert_id < self.num_experts:
            raise InvalidInputError(f"expert_id is {expert_id}, but experts are numbered 0 to {self.num_experts - 1}.")
        return int(self.expert_offsets[expert_id]), int(self.expert_offsets[expert_id + 1])


#: The dispatch operations' name of the same.
MoEDispatchInfo = DispatchInfo


def group_tokens_by_expert(expert_ids: Array, num_experts: int) -> tuple[Any, Any, Any]:
    """order [A], offsets [num_experts + 1] and inverse [A] of expert ids [T, k], int64, of the ids' own kind.

    order: flat indices (token · k + slot) sorted by expert, stable. Expert e's are order[offsets[e] : offsets[e + 1]].
    inverse: order[inverse[i]] = i. O(A + num_experts): the plugin's counting sort; a stable sort of Torch's for
    tensors that are not on the CPU.
    expert_ids: integers, int32 and int64 without a copy. Raises InvalidInputError for another shape or type,
    OnnxMoeError for an id outside [0, num_experts), naming row and slot.
    """
    tokens, slots = check_expert_ids(expert_ids, num_experts)
    if isinstance(expert_ids, np.ndarray):
        return _group_natively(expert_ids, tokens, slots, num_experts)
    import torch

    if expert_ids.device.type != "cpu":
        return group_on_device(expert_ids, num_experts)
    order, offsets, inverse = _group_natively(expert_ids.numpy(), tokens, slots, num_experts)
    return torch.from_numpy(order), torch.from_numpy(offsets), torch.from_numpy(inverse)


def group_tokens_by_expert_full(expert_ids: Array, num_experts: int) -> DispatchInfo:
    """`group_tokens_by_expert` with token and slot of each assignment apart."""
    order, offsets, inverse = group_tokens_by_expert(expert_ids, num_experts)
    tokens, slots = expert_ids.shape
    return DispatchInfo(order // slots, order % slots, offsets, inverse, tokens, slots, num_experts)


def check_expert_ids(expert_ids: Any, num_experts: int) -> tuple[int, int]:
    """T and k of integer ids [T, k]; InvalidInputError unless they are that."""
    if num_experts < 1:
        raise InvalidInputError(f"num_experts is {num_experts}, but must be at least 1.")
    kind = str(getattr(expert_ids, "dtype", type(expert_ids).__name__)).removeprefix("torch.")
    if len(getattr(expert_ids, "shape", ())) != 2 or not kind.startswith(("int", "uint")):
        shape = list(getattr(expert_ids, "shape", ()))
        raise InvalidInputError(
            f"expert_ids is {kind} of shape {shape}, but must be integers [T, k]: one row a token, one column a slot."
        )
    if expert_ids.shape[1] < 1:
        raise InvalidInputError(f"expert_ids has shape {list(expert_ids.shape)}, but k must be at least 1.")
    return int(expert_ids.shape[0]), int(expert_ids.shape[1])


def check_id_range(expert_ids: Any, num_experts: int) -> None:
    """InvalidInputError for the first of the ids [T, k] that is outside [0, num_experts), naming row and slot."""
    flat = expert_ids.reshape(-1)
    outside = (flat < 0) | (flat >= num_experts)
    if not bool(outside.any()):
        return
    index = int(outside.nonzero()[0][0])  # of numpy's tuple of arrays, or of Torch's rows
    row, slot = divmod(index, expert_ids.shape[1])
    raise InvalidInputError(
        f"expert_ids holds {int(flat[index])} in row {row}, slot {slot}, but experts are numbered 0 to "
        f"{num_experts - 1}."
    )


def _group_natively(
    expert_ids: np.ndarray[Any, Any], tokens: int, slots: int, num_experts: int
) -> tuple[Any, Any, Any]:
    if expert_ids.dtype == np.uint64:  # as int64, a wrong one would be reported as another number
        check_id_range(expert_ids, num_experts)
    ids = np.ascontiguousarray(expert_ids, np.int32 if expert_ids.dtype == np.int32 else np.int64)
    order, offsets, inverse = (np.empty(size, np.int64) for size in (ids.size, num_experts + 1, ids.size))
    status = _native.library().onnx_moe_group_tokens(
        ids.ctypes.data,
        ids.itemsize,
        tokens,
        slots,
        num_experts,
        order.ctypes.data,
        offsets.ctypes.data,
        inverse.ctypes.data,
    )
    _native.check(status)
    return order, offsets, inverse


def group_on_device(expert_ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same with Torch's operators, on the device of the ids."""
    import torch

    ids = expert_ids.long()
    check_id_range(ids, num_experts)
    flat = ids.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=num_experts)
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return order, offsets, inverse
