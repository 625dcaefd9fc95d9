"""One architecture: a tiny model of it exported, and its logits and cache beside Torch's with the same FP4 weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray

import onnx_moe
from onnx_moe.export import ExportReport, with_fp4_weights
from onnx_moe.export.kv_cache import cache_name
from tools.model_table.architectures import make_model
from tools.model_table.comparison import Comparison

Array = NDArray[Any]

_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxSteps:
    """An exported decoder, and the cache that it has filled so far."""

    def __init__(self, path: Path, batch: int, plugin: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if plugin:
            onnx_moe.register(options)
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        self.cache: dict[str, Array] = {}
        for value in self.session.get_inputs():
            if value.name.startswith("past_key_values."):
                shape = [size if isinstance(size, int) else batch if size == "batch" else 0 for size in value.shape]
                self.cache[value.name] = np.zeros(shape, _NUMPY_TYPES[value.type])

    def step(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Array:
        """The logits of `input_ids`; what they leave in the cache is kept for the next step."""
        present = [name.replace("past_key_values", "present") for name in self.cache]
        feeds = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy(), **self.cache}
        logits, *tensors = self.session.run(["logits", *present], feeds)
        self.cache = dict(zip(self.cache, tensors, strict=True))
        result: Array = logits
        return result


class TorchSteps:
    """The same with the model itself."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache: Any = None

    def step(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The logits of `input_ids`; what they leave in the cache is kept for the next step."""
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        with torch.no_grad():
            output = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=positions,
                use_cache=True,
                **{cache_name(self.model): self.cache},
            )
        self.cache = output[cache_name(self.model)]
        logits: torch.Tensor = output.logits
        return logits


def relative_error(actual: Array | torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected|, Frobenius norms in float64; NaN if either holds one."""
    actual, wanted = np.asarray(actual, np.float64), expected.double().numpy()
    if actual.shape != wanted.shape:
        raise ValueError(f"shapes {actual.shape} and {wanted.shape} differ")
    return float(np.linalg.norm(actual - wanted) / np.linalg.norm(wanted))


def padded_prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of 11, 8 and 1 tokens, padded on the left: longer than gpt-oss's window of 6."""
    input_ids = torch.randint(3, 97, (3, 11), generator=torch.Generator().manual_seed(1))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, :3] = 0
    attention_mask[2, :10] = 0
    return input_ids, attention_mask


def compare(model_type: str, folder: Path) -> Comparison:
    """Exports the tiny model into `folder` and compares: a prompt alone, a padded batch, two more steps of it."""
    model = make_model(model_type)
    path = folder / f"{model_type}.onnx"
    report = onnx_moe.export(model, None, path)
    with with_fp4_weights(model, None):
        prefill = _prefill_difference(path, model)
        padded, decode = _batch_differences(path, model)
    return _comparison(report, prefill, padded, decode)


def _prefill_difference(path: Path, model: Any) -> float:
    input_ids, attention_mask = (tensor[:1] for tensor in padded_prompts())
    expected = TorchSteps(model).step(input_ids, attention_mask)
    return relative_error(OnnxSteps(path, 1).step(input_ids, attention_mask), expected)


def _batch_differences(path: Path, model: Any) -> tuple[float, float]:
    input_ids, attention_mask = padded_prompts()
    decoder, torch_model = OnnxSteps(path, 3), TorchSteps(model)
    differences = []
    for _ in range(3):
        valid = attention_mask[:, -input_ids.shape[1] :].bool()
        expected = torch_model.step(input_ids, attention_mask)
        differences.append(relative_error(decoder.step(input_ids, attention_mask)[valid], expected[valid]))
        input_ids = expected[:, -1:].argmax(-1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(input_ids)], dim=1)
    return differences[0], float(np.max(differences[1:]))


def _comparison(report: ExportReport, prefill: float, padded: float, decode: float) -> Comparison:
    model = ir.load(report.path)
    domains = Counter(node.domain for node in model.graph)
    names = [value.name or "" for value in model.graph.inputs]
    return Comparison(
        routers=sorted({layer.router for layer in report.layers}),
        moe_layers=len(report.layers),
        nodes=sum(domains.values()),
        moe_nodes=domains["onnx_moe"],
        cache=sorted({name.split(".", 2)[2] for name in names if name.startswith("past_key_values.")}),
        prefill=prefill,
        padded=padded,
        decode=decode,
    )
