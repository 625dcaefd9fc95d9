"""Running an exported decoder: greedy text and perplexity through its KV cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import onnxruntime
from numpy.typing import NDArray

_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxDecoder:
    """An exported decoder: inputs input_ids, attention_mask and past_key_values.N.key / .value, outputs logits and
    present.N.key / .value.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._past = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
        self._outputs = ["logits", *(value.name.replace("past_key_values", "present") for value in self._past)]

    def empty_cache(self, batch: int) -> dict[str, NDArray[np.generic]]:
        """A cache of no tokens for `batch` rows."""
        cache: dict[str, NDArray[np.generic]] = {}
        for value in self._past:
            _, heads, _, width = value.shape
            cache[value.name] = np.zeros((batch, heads, 0, width), _NUMPY_TYPES[value.type])
        return cache

    def step(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        cache: dict[str, NDArray[np.generic]],
    ) -> tuple[NDArray[np.floating], dict[str, NDArray[np.generic]]]:
        """Logits [batch, tokens, vocabulary] of `input_ids` [batch, tokens] after `cache`, and the cache then."""
        logits, *present = self._session.run(
            self._outputs, {"input_ids": input_ids, "attention_mask": attention_mask, **cache}
        )
        return logits, {value.name: tensor for value, tensor in zip(self._past, present, strict=True)}

    def tokens(self, prompt: NDArray[np.int64]) -> Iterator[int]:
        """The likeliest tokens, one after another, behind `prompt` [tokens]: each is computed when it is asked for."""
        cache = self.empty_cache(1)
        input_ids = prompt[None]
        for length in itertools.count(len(prompt)):
            logits, cache = self.step(input_ids, np.ones((1, length), np.int64), cache)
            token = int(logits[0, -1].argmax())
            yield token
            input_ids = np.array([[token]], np.int64)

    def greedy(self, prompt: NDArray[np.int64], new_tokens: int) -> list[int]:
        """The first `new_tokens` of `tokens`."""
        return list(itertools.islice(self.tokens(prompt), new_tokens))

    def perplexity(self, windows: NDArray[np.int64]) -> float:
        """exp of the mean negative log likelihood of each window's tokens [windows, tokens] but its first."""
        return perplexity(
            np.stack(
                [self.step(row[None], np.ones((1, len(row)), np.int64), self.empty_cache(1))[0][0] for row in windows]
            ),
            windows,
        )


def perplexity(logits: NDArray[np.floating], windows: NDArray[np.int64]) -> float:
    """exp of the mean negative log likelihood of windows[:, 1:] under logits [windows, tokens, vocabulary]."""
    scores = logits[:, :-1].astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    log_total = np.log(np.exp(scores).sum(axis=-1))
    chosen = np.take_along_axis(scores, windows[:, 1:, None], axis=-1)[..., 0]
    return math.exp(float((log_total - chosen).mean()))
