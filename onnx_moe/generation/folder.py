"""A folder with an exported decoder: the model, its tokenizer, the tokens that end a text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import onnxruntime

from onnx_moe.errors import InvalidModelError
from onnx_moe.generation.decoder import DecoderSession
from onnx_moe.session import InferenceSession

MODEL_NAME = "model.onnx"


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that lies in a folder, of transformers. InvalidModelError where there is none."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise InvalidModelError(
            "The tokenizer needs transformers, which is not installed: pip install 'onnx-moe[torch]'."
        ) from error
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise InvalidModelError(f"{folder} holds no tokenizer.json: copy the checkpoint's tokenizer into it.")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


class ModelFolder:
    """model.onnx with tokenizer.json, and config.json, generation_config.json and a chat template where there are.

    Raises InvalidModelError, which names what is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise InvalidModelError(f"{path} is no folder: give one that holds {MODEL_NAME} and its tokenizer.")
        if not (path / MODEL_NAME).is_file():
            raise InvalidModelError(f"{path} holds no {MODEL_NAME}: give a folder that onnx-moe export has written.")

    def open(self, options: onnxruntime.SessionOptions | None = None) -> DecoderSession:
        """A session with the plugin."""
        return DecoderSession(InferenceSession(self.path / MODEL_NAME, options))

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return load_tokenizer(self.path)

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """Ids of tokens that end a text: of generation_config.json, else of config.json, else of the tokenizer."""
        for name in ("generation_config.json", "config.json"):
            tokens = _as_list(read_json(self.path / name).get("eos_token_id"))
            if tokens:
                return frozenset(tokens)
        return frozenset(_as_list(self.tokenizer.eos_token_id))

    def encode(self, prompt: str, chat: bool | None = None) -> list[int]:
        """Tokens of `prompt`; as a user's message in the chat template if there is one, or if `chat` says so."""
        has_template = bool(getattr(self.tokenizer, "chat_template", None))
        if chat and not has_template:
            raise InvalidModelError(f"The tokenizer of {self.path} has no chat template: leave chat out.")
        if chat is False or not has_template:
            return list(self.tokenizer(prompt)["input_ids"])
        messages = [{"role": "user", "content": prompt}]
        answer = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(answer["input_ids"])

    def decode(self, tokens: Iterable[int]) -> Iterator[str]:
        """Pieces of text as soon as they are whole: a token may end in the middle of a character.

        Each piece is what its tokens add to the text of the piece before: decoded alone, many tokenizers drop the
        space that a piece begins with.
        """
        before: list[int] = []
        pending: list[int] = []
        for token in tokens:
            pending.append(token)
            piece = self._added_text(before, pending)
            if piece and not piece.endswith("\N{REPLACEMENT CHARACTER}"):
                yield piece
                before, pending = pending, []
        if pending and (piece := self._added_text(before, pending)):
            yield piece

    def _added_text(self, before: list[int], added: list[int]) -> str:
        known: str = self.tokenizer.decode(before, skip_special_tokens=True)
        text: str = self.tokenizer.decode([*before, *added], skip_special_tokens=True)
        return text[len(known) :]


def read_json(path: Path) -> Mapping[str, Any]:
    """The object of a JSON file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidModelError(f"{path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise InvalidModelError(f"{path} holds a {type(content).__name__}: it must hold a JSON object.")
    return content


def _as_list(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(token) for token in value] if isinstance(value, list) else [int(value)]
