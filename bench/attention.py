"""Which attention to trace: python -m bench.attention.

A decoder of one layer with a real model's attention and experts too small to count, exported with each of
transformers' implementations and versions of ONNX's operators; what a prompt and a token take in ONNX Runtime.
"""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

import onnx_moe
from bench.glm_checkpoint import GLM_FLASH
from onnx_moe.demo.timing import median_seconds
from onnx_moe.export import tracing
from onnx_moe.export.patching import replace_attribute
from onnx_moe.generation import Cache, DecoderSession

_SMALL = {
    "num_hidden_layers": 1,
    "vocab_size": 32,
    "moe_intermediate_size": 64,
    "num_experts_per_tok": 1,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
#: The attention of published models: grouped keys and values, the latent, a key and value for every head.
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 4,
    },
    "GLM-4.7-Flash": {**GLM_FLASH, "n_routed_experts": 4, "mlp_layer_types": ["sparse"]},
    "OLMoE-1B-7B": {
        "model_type": "olmoe",
        "hidden_size": 2048,
        "intermediate_size": 64,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 4,
    },
}


@dataclass(frozen=True)
class Variant:
    """How a decoder is traced. as_written: as transformers has it, with keys and values copied for each head."""

    attention: str
    opset: int
    as_written: bool = False

    def __str__(self) -> str:
        return f"{self.attention}, opset {self.opset}{', as written' if self.as_written else ''}"


VARIANTS = (
    Variant("eager", 21, as_written=True),
    Variant("sdpa", 21, as_written=True),
    Variant("sdpa", 23, as_written=True),
    Variant("sdpa", 23),
)


@dataclass(frozen=True)
class Call:
    """New tokens of each row after `past` others."""

    batch: int
    past: int
    tokens: int

    def __str__(self) -> str:
        rows = f"{self.batch} rows of " if self.batch > 1 else ""
        return f"{rows}{self.tokens} after {self.past}"


CALLS = (Call(1, 0, 512), Call(1, 1536, 512), Call(1, 512, 1), Call(1, 4096, 1), Call(4, 1024, 1))


def main(
    threads: Annotated[int, typer.Option(help="Of ONNX Runtime.")] = 2,
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    rounds: Annotated[int, typer.Option(help="Of a measurement, each of three calls, of which two count.")] = 4,
    models: Annotated[list[str] | None, typer.Argument(help="Of those known; all by default.")] = None,
) -> None:
    """Milliseconds of a call, by how attention was traced."""
    console = Console(width=120)
    for name in models or MODELS:
        with tempfile.TemporaryDirectory(prefix="onnx-moe-bench-") as folder:
            sessions = _sessions(MODELS[name], Path(folder), threads, getattr(torch, dtype))
            console.print(f"{name}, {dtype}, {threads} threads: ms a call", highlight=False)
            for call in CALLS:
                seconds = _measure(sessions, call, rounds)
                figures = ", ".join(f"{variant} {1e3 * each:.2f}" for variant, each in seconds.items())
                console.print(f"  {call}: {figures}", highlight=False)


def _sessions(settings: dict[str, Any], folder: Path, threads: int, dtype: torch.dtype) -> dict[str, DecoderSession]:
    sessions = {}
    for index, variant in enumerate(VARIANTS):
        config = AutoConfig.for_model(**{**settings, **_SMALL})
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=variant.attention)
        path = folder / f"{index}.onnx"
        with _as_written(variant):
            onnx_moe.export(model.eval(), None, path, opset=variant.opset, functions=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        sessions[str(variant)] = DecoderSession(onnx_moe.InferenceSession(path, options))
    return sessions


def _as_written(variant: Variant) -> AbstractContextManager[Any]:
    """Leaves transformers' attention alone inside the block, if `variant` says so."""
    if variant.as_written:
        return replace_attribute(tracing, "efficient_attention", lambda _model: nullcontext())
    return nullcontext()


def _measure(sessions: dict[str, DecoderSession], call: Call, rounds: int) -> dict[str, float]:
    numbers = np.random.default_rng(0)
    input_ids = numbers.integers(3, 32, (call.batch, call.tokens))
    mask = np.ones((call.batch, call.past + call.tokens), np.int64)
    first = next(iter(sessions.values()))
    cache = Cache(call.past, tuple(_random(value, call, numbers) for value in first.session.get_inputs()[2:]))
    logits = {name: session.step(input_ids, mask, cache)[0] for name, session in sessions.items()}
    for name, values in logits.items():
        _check_equal(name, values, next(iter(logits.values())))
    runs = {name: partial(session.step, input_ids, mask, cache) for name, session in sessions.items()}
    return median_seconds(runs, rounds, burst=3)


def _random(value: Any, call: Call, numbers: np.random.Generator) -> onnxruntime.OrtValue:
    sizes = {"batch": call.batch, "past_length": call.past}
    values = numbers.standard_normal([sizes.get(size, size) for size in value.shape], np.float32)
    return onnxruntime.OrtValue.ortvalue_from_numpy(values.astype(np.float16 if "16" in value.type else np.float32))


def _check_equal(name: str, actual: NDArray[np.floating], expected: NDArray[np.floating]) -> None:
    difference = np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64))
    if not difference < (1e-4 if actual.dtype == np.float32 else 1e-2):
        raise SystemExit(f"{name} computes something else: it differs by {difference:.1e}.")


if __name__ == "__main__":
    typer.run(main)
