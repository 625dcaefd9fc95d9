"""The trained model that ships with the package, exported whole: the same text, the same perplexity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import onnx_moe
from onnx_moe.demo.decoder import decoder_perplexity, perplexity, write_greedily
from onnx_moe.export import with_fp4_weights

PROMPT = "import os\nimport sys\n\n\ndef "
NEW_TOKENS = 80
#: Windows of held-out text that perplexity is taken over.
WINDOWS, WINDOW_TOKENS = 16, 256


@dataclass(frozen=True)
class TextResult:
    """What the demo's trained model writes and how well it predicts held-out text."""

    parameters: int
    module_bytes: int
    model_bytes: int
    prompt: str
    text: str
    new_tokens: int
    agreeing_tokens: int
    perplexity_torch: float
    perplexity_plugin: float
    perplexity_stock: float


def run_text(folder: Path, progress: Callable[[str], None]) -> TextResult:
    """Exports the trained model into `folder`, and runs it in Torch, with the plugin and on stock ONNX Runtime."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with as_file(files("onnx_moe") / "data" / "tiny-glm") as model_folder:
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).eval()
        model.set_experts_implementation("eager")  # the quickest of them on a CPU
        windows = _windows(tokenizer, (model_folder / "heldout.txt").read_text(encoding="utf-8"))
    progress("perplexity of the trained model in Torch, bfloat16")
    perplexity_torch = _torch_perplexity(model, windows)

    progress("exporting the whole decoder")
    path = folder / "tiny-glm.onnx"
    report = onnx_moe.export(model, None, path)

    prompt = np.array(tokenizer(PROMPT)["input_ids"], np.int64)
    progress(f"writing {NEW_TOKENS} tokens in ONNX Runtime and in Torch with the same FP4 weights")
    plugin = onnx_moe.InferenceSession(path)
    written = write_greedily(plugin, prompt, NEW_TOKENS)
    expected = _torch_greedy(model.float(), prompt)

    progress("perplexity with the plugin, and on stock ONNX Runtime")
    stock = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return TextResult(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        module_bytes=report.module_bytes,
        model_bytes=report.model_bytes,
        prompt=PROMPT,
        text=str(tokenizer.decode(written)),
        new_tokens=NEW_TOKENS,
        agreeing_tokens=sum(ours == theirs for ours, theirs in zip(written, expected, strict=True)),
        perplexity_torch=perplexity_torch,
        perplexity_plugin=decoder_perplexity(plugin, windows),
        perplexity_stock=decoder_perplexity(stock, windows),
    )


def _windows(tokenizer: Any, text: str) -> NDArray[np.int64]:
    """Windows [WINDOWS, WINDOW_TOKENS] spread evenly over the text."""
    tokens = np.array(tokenizer(text)["input_ids"], np.int64)
    starts = np.linspace(0, len(tokens) - WINDOW_TOKENS, WINDOWS).astype(int)
    return np.stack([tokens[start : start + WINDOW_TOKENS] for start in starts])


def _torch_perplexity(model: torch.nn.Module, windows: NDArray[np.int64]) -> float:
    with torch.inference_mode():
        logits = [model(input_ids=torch.from_numpy(row[None])).logits[0].float().numpy() for row in windows]
    return perplexity(np.stack(logits), windows)


def _torch_greedy(model: Any, prompt: NDArray[np.int64]) -> list[int]:
    """The tokens that Torch writes in float32 with the values of the FP4 codes."""
    with with_fp4_weights(model, None), torch.inference_mode():
        input_ids = torch.from_numpy(prompt[None])
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
    return [int(token) for token in output[0, len(prompt) :]]
