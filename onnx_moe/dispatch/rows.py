"""Rows to the experts, and the experts' outputs back to their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_moe import _native, _native_rows
from onnx_moe.dispatch.grouping import DispatchInfo
from onnx_moe.errors import InvalidInputError

if TYPE_CHECKING:
    from onnx_moe.dispatch.grouping import Array

#: Dtypes that the plugin combines, and its names of them.
_NATIVE_TYPES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}


def gather_for_experts(activations: Array, dispatch_info: DispatchInfo) -> Any:
    """Rows [A, H] of activations [T, H] in the order of the experts: row i is that of token
    dispatch_info.sorted_token_indices[i], bit for bit, in the same dtype.
    """
    check_rows("activations", activations, dispatch_info.num_tokens, "num_tokens")
    return take_rows(activations, dispatch_info.sorted_token_indices)


def scatter_expert_outputs(expert_outputs: Array, expert_probs: Array, dispatch_info: DispatchInfo) -> Any:
    """out [T, N] in expert_outputs' dtype: out[t] = Σ_slot expert_probs[t, slot] · (output of t's expert in that slot).

    expert_outputs: floats [A, N] in the order of `gather_for_experts`; expert_probs [T, k], not renormalised. Summed in
    slot order, in float32 (float64 for float64). An expert that occurs twice in a row counts twice. By the plugin for
    numpy and Torch's CPU; by Torch's operators on other devices and where a gradient is wanted.
    Raises InvalidInputError for other shapes or dtypes.
    """
    check_rows("expert_outputs", expert_outputs, dispatch_info.total_assignments, "total_assignments")
    kind = str(expert_outputs.dtype).removeprefix("torch.")
    if "float" not in kind:
        raise InvalidInputError(f"expert_outputs is {kind}, but must be floats: a weighted sum of integers is none.")
    tokens, slots = dispatch_info.num_tokens, dispatch_info.top_k
    if tuple(expert_probs.shape) != (tokens, slots):
        raise InvalidInputError(
            f"expert_probs has shape {list(expert_probs.shape)}, but must be [{tokens}, {slots}], one weight for each "
            "slot of each token."
        )
    positions = _as_kind_of(expert_outputs, dispatch_info.inverse_indices)
    weights = _as_kind_of(expert_outputs, expert_probs)
    if kind in _NATIVE_TYPES and _is_native(expert_outputs) and _is_native(weights):
        return _scatter_natively(expert_outputs, weights, positions, _native.ELEMENT_TYPES[_NATIVE_TYPES[kind]])
    rows = positions.reshape(tokens, slots)
    total = _wide(weights[:, :1]) * _wide(expert_outputs[rows[:, 0]])
    for slot in range(1, slots):
        total = total + _wide(weights[:, slot, None]) * _wide(expert_outputs[rows[:, slot]])
    return total.astype(kind) if isinstance(total, np.ndarray) else total.to(expert_outputs.dtype)


def take_rows(x: Array, indices: Any) -> Any:
    """Rows [n, …] of x [T, …] at int64 indices [n], bit for bit."""
    indices = _as_kind_of(x, indices)
    if not _is_native(x):
        return x[indices]
    source, wanted = _contiguous(x), _contiguous(indices)
    out = _empty((len(wanted), *source.shape[1:]), source)
    row_bytes = _item_bytes(source) * int(np.prod(source.shape[1:], dtype=np.int64))
    _native_rows.gather_rows(
        _native_rows.Gather(
            _address(source), len(source), row_bytes, _address(wanted), len(wanted), _threads(source), _address(out)
        )
    )
    return out


def check_rows(name: str, array: Any, rows: int, meaning: str) -> None:
    """InvalidInputError unless `array` is [rows, …] with one more dimension."""
    if len(array.shape) != 2 or array.shape[0] != rows:
        raise InvalidInputError(
            f"{name} has shape {list(array.shape)}, but must be [{rows}, …]: {meaning} of the grouping is {rows}."
        )


def _scatter_natively(outputs: Any, probs: Any, inverse: Any, element_type: int) -> Any:
    tokens, slots = probs.shape
    y, positions = _contiguous(outputs), _contiguous(inverse)
    weights = _contiguous(probs.astype(np.float32) if isinstance(probs, np.ndarray) else probs.float())
    out = _empty((tokens, y.shape[1]), y)
    _native_rows.scatter_rows(
        _native_rows.Scatter(
            element_type,
            _address(y),
            len(y),
            y.shape[1],
            _address(positions),
            _address(weights),
            tokens,
            slots,
            _threads(y),
            _address(out),
        )
    )
    return out


def _is_native(array: Any) -> bool:
    """Whether the plugin can read an array's memory, and nobody wants a gradient of what it does."""
    if isinstance(array, np.ndarray):
        return not array.dtype.hasobject
    import torch

    plain = type(array) in (torch.Tensor, torch.nn.Parameter) and array.layout == torch.strided
    return plain and array.device.type == "cpu" and not (array.requires_grad and torch.is_grad_enabled())


def _as_kind_of(model: Any, array: Any) -> Any:
    """`array` as numpy or on the Torch device, like `model`."""
    if isinstance(model, np.ndarray):
        return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    import torch

    return torch.as_tensor(array, device=model.device)


def _contiguous(array: Any) -> Any:
    return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array.detach().contiguous()


def _empty(shape: tuple[int, ...], model: Any) -> Any:
    return np.empty(shape, model.dtype) if isinstance(model, np.ndarray) else model.new_empty(shape)


def _item_bytes(array: Any) -> int:
    return int(array.itemsize if isinstance(array, np.ndarray) else array.element_size())


def _address(array: Any) -> int:
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr())


def _threads(array: Any) -> int:
    """Torch's number for its tensors; one for numpy, as numpy itself would take."""
    if isinstance(array, np.ndarray):
        return 1
    import torch

    return torch.get_num_threads()


def _wide(array: Any) -> Any:
    """In float32, or in float64 what is that."""
    if isinstance(array, np.ndarray):
        return array if array.dtype == np.float64 else array.astype(np.float32)
    return array if array.element_size() == 8 else array.float()
