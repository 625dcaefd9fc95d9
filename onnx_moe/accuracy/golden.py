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
from onnx_moe.errors import InvalidModelError

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
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path, reference: ReferenceModel) -> Golden:
        """InvalidModelError when they are of another model than `reference`."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            golden = Golden(
                fields["config_hash"], tuple(fields["prompt"]), tuple(fields["tokens"]), tuple(fields["margins"])
            )
        except (OSError, ValueError, KeyError) as error:
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
    """What the reference writes behind `prompt`."""
    ids = torch.tensor([reference.tokenizer(prompt)["input_ids"]])
    with torch.inference_mode():
        output = reference.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best = torch.cat(output.logits).float().topk(2).values
    return Golden(
        config_hash(reference),
        tuple(ids[0].tolist()),
        tuple(output.sequences[0, ids.shape[1] :].tolist()),
        tuple(round(float(lead), 4) for lead in best[:, 0] - best[:, 1]),
    )
