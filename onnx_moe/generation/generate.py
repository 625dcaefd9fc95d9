"""The loop: a prompt through the decoder, then token after token."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_moe.errors import InvalidInputError
from onnx_moe.generation.decoder import DecoderSession
from onnx_moe.generation.sampling import Sampler, Sampling

#: Tokens of a prompt that run at once: the logits of all of them are in memory together.
PROMPT_CHUNK = 512


@dataclass
class Timing:
    """How long what took. prompt_seconds: until the first new token."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    new_seconds: float = 0.0

    def __str__(self) -> str:
        parts = [_rate("prompt", self.prompt_tokens, self.prompt_seconds)]
        if self.new_tokens > 1:  # the first one belongs to the prompt
            parts.append(_rate("text", self.new_tokens - 1, self.new_seconds))
        return ", ".join(parts)


def _rate(what: str, tokens: int, seconds: float) -> str:
    return f"{what} {tokens} tokens in {seconds:.2f} s ({tokens / max(seconds, 1e-9):.1f} tokens/s)"


def generate_tokens(
    decoder: DecoderSession,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    timing: Timing | None = None,
) -> Iterator[int]:
    """New tokens behind `prompt`, each as soon as it is there, at most `max_new_tokens`; a token of `stop` ends the
    text and is not yielded. `timing`, if given, is filled in on the way.
    """
    if not len(prompt):
        raise InvalidInputError("The prompt holds no token: give some text to go on from.")
    if max_new_tokens < 1:
        raise InvalidInputError(f"max_new_tokens={max_new_tokens} must be 1 or more.")
    timing = timing if timing is not None else Timing()
    sampler = Sampler(sampling or Sampling())
    start = time.perf_counter()
    cache = decoder.empty_cache(1)
    pending = np.asarray(prompt, np.int64)[None]
    while True:
        for first in range(0, pending.shape[1], PROMPT_CHUNK):
            chunk = pending[:, first : first + PROMPT_CHUNK]
            mask = np.ones((1, cache.tokens + chunk.shape[1]), np.int64)
            logits, cache = decoder.step(chunk, mask, cache)
        token = sampler.draw(logits[0, -1])
        _take_time(timing, len(prompt), time.perf_counter() - start)
        if token in stop:
            return
        yield token
        if timing.new_tokens >= max_new_tokens:
            return
        pending = np.array([[token]], np.int64)


def _take_time(timing: Timing, prompt_tokens: int, elapsed: float) -> None:
    if timing.new_tokens == 0:
        timing.prompt_tokens, timing.prompt_seconds = prompt_tokens, elapsed
    timing.new_tokens += 1
    timing.new_seconds = elapsed - timing.prompt_seconds
