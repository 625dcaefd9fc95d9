"""Steps of an exported decoder through I/O binding: what one leaves in the cache is the next one's input as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError, InvalidModelError
from onnx_moe.routing.recording import known_phase
from onnx_moe.routing.trace import DECODE, PREFILL

_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_PAST, _PRESENT = "past_key_values", "present"


@dataclass(frozen=True)
class Cache:
    """What the tokens so far have left, in ONNX Runtime's own memory. tokens: how many those are."""

    tokens: int
    values: tuple[onnxruntime.OrtValue, ...]


class DecoderSession:
    """An exported decoder: inputs input_ids [B, S], attention_mask [B, P + S] and the cache's tensors
    past_key_values.*, outputs logits [B, S, V] and the tensors present.* that take their place.

    Raises InvalidModelError when the session's model is another.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        names = [value.name for value in session.get_inputs()]
        outputs = {value.name for value in session.get_outputs()}
        self._past = [value for value in session.get_inputs() if value.name.startswith(f"{_PAST}.")]
        self._present = [value.name.replace(_PAST, _PRESENT, 1) for value in self._past]
        missing = [name for name in ("input_ids", "attention_mask") if name not in names]
        missing += [name for name in ("logits", *self._present) if name not in outputs]
        if missing or not self._past:
            raise InvalidModelError(
                f"The model is no exported decoder: it has no {', '.join(missing) or 'past_key_values.*'}. Export one "
                "with onnx_moe.export(model, None, path)."
            )
        unknown = sorted({value.type for value in self._past} - _NUMPY_TYPES.keys())
        if unknown:
            raise InvalidModelError(f"The model's cache is of {', '.join(unknown)}: float and float16 can be run.")
        self.session = session

    def empty_cache(self, batch: int) -> Cache:
        """The cache of no tokens for `batch` rows."""
        return Cache(0, tuple(self._empty(value, batch) for value in self._past))

    def _empty(self, value: Any, batch: int) -> onnxruntime.OrtValue:
        # What is no row grows: by tokens, or by windows of them (DeepSeek-V4).
        shape = [size if isinstance(size, int) else batch if size == "batch" else 0 for size in value.shape]
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, _NUMPY_TYPES[value.type]))

    def step(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], cache: Cache
    ) -> tuple[NDArray[np.floating], Cache]:
        """Logits [B, S, V] of `input_ids` [B, S] after `cache`, and the cache then.

        attention_mask [B, cache.tokens + S]: 0 for padding. A cache can be used again: nothing is written into it.
        """
        total = cache.tokens + input_ids.shape[1]
        if attention_mask.shape != (input_ids.shape[0], total):
            raise InvalidInputError(
                f"attention_mask is {list(attention_mask.shape)}: for input_ids {list(input_ids.shape)} after "
                f"{cache.tokens} tokens it must be {[input_ids.shape[0], total]}."
            )
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(input_ids))
        binding.bind_cpu_input("attention_mask", np.ascontiguousarray(attention_mask))
        for description, value in zip(self._past, cache.values, strict=True):
            binding.bind_ortvalue_input(description.name, value)
        for name in ("logits", *self._present):
            binding.bind_output(name)  # ONNX Runtime allocates, and hands the memory on
        # A router may see [B · S, H] alone, which does not tell a prompt from a batch of new tokens.
        with known_phase(self.session, DECODE if cache.tokens and input_ids.shape[1] == 1 else PREFILL):
            self.session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        return logits.numpy(), Cache(total, tuple(present))

    def read(self, cache: Cache) -> dict[str, NDArray[np.generic]]:
        """Copies of a cache's tensors by the names of the inputs that they are."""
        return {description.name: value.numpy() for description, value in zip(self._past, cache.values, strict=True)}
