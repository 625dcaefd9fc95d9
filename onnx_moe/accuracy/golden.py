"""Golden token ids: what the reference writes, with the lead of each token, so that a near tie is no failure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_moe.accuracy.reference import ReferenceModel
from onnx_moe.accuracy.report import GoldenResult
from onnx_moe.errors import InvalidModelError, OnnxMoeError

PROMPT = "import os\nimport sys\n\n\ndef "
NEW_TOKENS = 64


@dataclass(frozen=True)
class Golden:
    """Greedy tokens behind a prompt. margins: lead of each over the second, in logits. config_hash: of the reference's
    configuration, so that tokens of another model are not taken for this one's."""

    config_hash: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    margins: tuple[float, ...]

    def save(self, path: Path) -> None:
        """OnnxMoeError when the file cannot be written."""
        try:
            path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        except OSError as error:
            raise OnnxMoeError(f"{path} cannot be written: {error}. Choose another file.") from error

    @staticmethod
    def load(path: Path, reference: ReferenceModel) -> Golden:
        """InvalidModelError when they are of another model than `reference`."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            golden = Golden(
                fields["config_hash"], tuple(fields["prompt"]), tuple(fields["tokens"]), tuple(fields["margins"])
            )
            if len(golden.tokens) != len(golden.margins):
                raise ValueError(f"{len(golden.tokens)} tokens have {len(golden.margins)} margins")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidModelError(f"{path} holds no golden tokens: {error}. Write them anew.") from error
        if golden.config_hash != config_hash(reference):
            raise InvalidModelError(f"{path} holds golden tokens of another model than the reference: write them anew.")
        return golden

    def judge(self, logits: NDArray[np.float32]) -> GoldenResult:
        """logits [prompt + tokens, V] of a run on the prompt and the golden tokens."""
        first = len(self.prompt) - 1
        predicted = logits[first : first + len(self.tokens)].argmax(axis=-1)
        right = predicted == np.array(self.tokens)
        wrong = tuple(margin for margin, good in zip(self.margins, right, strict=True) if not good)
        return GoldenResult(len(self.tokens), int(right.sum()), wrong)

    def sequence(self) -> NDArray[np.int64]:
        return np.array([*self.prompt, *self.tokens], np.int64)


def config_hash(reference: ReferenceModel) -> str:
    config = reference.module.config.to_dict()
    for key in ("transformers_version", "_name_or_path", "dtype", "torch_dtype"):
        config.pop(key, None)
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def make_golden(reference: ReferenceModel, prompt: str = PROMPT, new_tokens: int = NEW_TOKENS) -> Golden:
    """What the reference writes behind `prompt`.

    Not by its generate(): what a model's generation settings add, such as a penalty of repetition or an end before
    `new_tokens`, makes of the most likely token another one, which no run's logits would agree with.
    """
    ids = list(reference.tokenizer(prompt)["input_ids"])
    sequence, margins = list(ids), []
    with torch.inference_mode():
        for _ in range(new_tokens):
            logits = reference.module(input_ids=torch.tensor([sequence]), use_cache=False).logits
            best = logits[0, -1].float().topk(2)
            sequence.append(int(best.indices[0]))
            margins.append(round(float(best.values[0] - best.values[1]), 4))
    return Golden(config_hash(reference), tuple(ids), tuple(sequence[len(ids) :]), tuple(margins))
