"""Running an exported decoder for the demo: greedy text and perplexity."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from onnx_moe.generation import DecoderSession, generate_tokens


def write_greedily(session: onnxruntime.InferenceSession, prompt: NDArray[np.int64], new_tokens: int) -> list[int]:
    """The `new_tokens` likeliest tokens, one after another, behind `prompt` [tokens]."""
    return list(generate_tokens(DecoderSession(session), prompt.tolist(), new_tokens))


def decoder_perplexity(session: onnxruntime.InferenceSession, windows: NDArray[np.int64]) -> float:
    """`perplexity` of each window [windows, tokens] by itself."""
    decoder = DecoderSession(session)
    logits = [
        decoder.step(row[None], np.ones((1, len(row)), np.int64), decoder.empty_cache(1))[0][0] for row in windows
    ]
    return perplexity(np.stack(logits), windows)


def perplexity(logits: NDArray[np.floating], windows: NDArray[np.int64]) -> float:
    """exp of the mean negative log likelihood of windows[:, 1:] under logits [windows, tokens, vocabulary]."""
    scores = logits[:, :-1].astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    log_total = np.log(np.exp(scores).sum(axis=-1))
    chosen = np.take_along_axis(scores, windows[:, 1:, None], axis=-1)[..., 0]
    return math.exp(float((log_total - chosen).mean()))
