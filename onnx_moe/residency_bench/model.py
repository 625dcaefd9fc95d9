"""The model that is measured, and the text that it goes on writing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError, InvalidModelError, OnnxMoeError
from onnx_moe.fusion import fuse
from onnx_moe.inspection import inspect_model

#: The name of the trained model that comes with the package.
TINY = "tiny-glm"

_SMALL_BYTES = 1024
# Of several beginnings of files, one behind which the model does not soon repeat itself.
_PROMPT = "# Licensed under the Apache License\n\nimport asyncio\n\n\nasync def "


@dataclass(frozen=True)
class TextModel:
    """An exported decoder and what it is given to read. num_experts: of a layer, shared ones included."""

    name: str
    path: Path
    data_files: tuple[Path, ...]
    num_experts: int
    prompt: NDArray[np.int64]
    decode: Callable[[list[int]], str]


@contextmanager
def find_model(
    model: str, prompt: str | None, tokenizer: str | None, progress: Callable[[str], None]
) -> Iterator[TextModel]:
    """The decoder in the file `model`, or, for "tiny-glm", the trained one of this package, exported and fused.

    prompt: text, or token ids with commas. tokenizer: the folder of a tokenizer.json; without one, the model's.
    Raises InvalidModelError for a file that is no decoder, InvalidInputError where text or tokenizer is missing.
    """
    if model == TINY:
        with tempfile.TemporaryDirectory(prefix="onnx-moe-bench-") as folder:
            path, own_tokenizer = _export_tiny(Path(folder), progress)
            yield _text_model(model, path, prompt or _PROMPT, tokenizer or own_tokenizer)
    else:
        path = Path(model)
        if prompt is None:
            raise InvalidInputError(
                "what the model shall read is missing: give --prompt TEXT, or token ids with commas."
            )
        yield _text_model(path.name, path, prompt, tokenizer or str(path.resolve().parent))


def _export_tiny(folder: Path, progress: Callable[[str], None]) -> tuple[Path, str]:
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        from onnx_moe.export import export
    except ImportError as error:
        raise OnnxMoeError(f"{TINY} is exported by Torch ({error}): pip install 'onnx-moe[torch]'") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    progress("exporting the trained model")
    source = files("onnx_moe") / "data" / TINY
    with as_file(source) as model_folder:
        module = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).eval()
        export(module, None, folder / "decoder.onnx", functions=False)
    model = ir.from_proto(onnx.load(folder / "decoder.onnx"))
    fuse(model)
    fused = folder / "fused.onnx"
    # The exporter leaves small tensors in the model file, and all of a small model's scales are.
    onnx.save(ir.to_proto(model), fused, save_as_external_data=True, location="fused.data", size_threshold=_SMALL_BYTES)
    return fused, str(source)


def _text_model(name: str, path: Path, prompt: str, tokenizer: str) -> TextModel:
    inspection = inspect_model(path)
    experts = max((node.num_experts or 0 for node in inspection.nodes), default=0)
    if not experts:
        raise InvalidModelError(f"{path} has no experts in MoE nodes: export a mixture-of-experts model by onnx_moe.")
    if not inspection.data_files:
        raise InvalidModelError(f"{path} has no external data: experts without a file of their own cannot be read.")
    names = {value.name for value in onnx.load(path, load_external_data=False).graph.input}
    if not {"input_ids", "attention_mask", "past_key_values.0.key"} <= names:
        raise InvalidModelError(
            f"{path} has the inputs {', '.join(sorted(names)[:6])} …: only a decoder with input_ids, attention_mask "
            "and past_key_values.… writes text. Export a causal language model: onnx_moe.export(model, None, path)."
        )
    ids, decode = _read_prompt(prompt, tokenizer)
    return TextModel(name, path, inspection.data_files, experts, ids, decode)


def _read_prompt(prompt: str, tokenizer: str) -> tuple[NDArray[np.int64], Callable[[list[int]], str]]:
    parts = prompt.split(",")
    if all(part.strip().isdigit() for part in parts):
        return np.array([int(part) for part in parts], np.int64), lambda tokens: " ".join(map(str, tokens))
    file = Path(tokenizer) / "tokenizer.json"
    if not file.is_file():
        raise InvalidInputError(
            f"{file} is not there to read the prompt: give --tokenizer FOLDER, or --prompt with token ids."
        )
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise OnnxMoeError(f"a text needs tokenizers ({error}): pip install 'onnx-moe[torch]'") from error
    loaded = Tokenizer.from_file(str(file))
    ids = np.array(loaded.encode(prompt).ids, np.int64)
    if not len(ids):
        raise InvalidInputError("the prompt holds no token: give more text.")
    return ids, lambda tokens: str(loaded.decode(tokens))
