"""The byte-level BPE tokenizer of the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
CONTEXT_LENGTH = 2048


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE: encodes any bytes; digits stand alone; ``END_OF_TEXT`` is 0, ``PADDING`` is 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json`` as transformers reads them."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        padding_side="left",
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> npt.NDArray[np.uint16]:
    """All documents in one array, each followed by ``END_OF_TEXT``."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    pieces = []
    for start in range(0, len(texts), 256):
        encodings = tokenizer.encode_batch(texts[start : start + 256])
        pieces += [np.array([*encoding.ids, end], dtype=np.uint16) for encoding in encodings]
    return np.concatenate(pieces)
