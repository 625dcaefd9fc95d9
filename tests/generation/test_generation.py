"""Steps and texts of a decoder whose every token is known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner

from onnx_moe.cli import app
from onnx_moe.errors import InvalidInputError, InvalidModelError, OnnxMoeError
from onnx_moe.generation import DecoderSession, ModelFolder, Sampling, Timing, generate, generate_tokens

from .counting_model import continuation, counting_model, next_token, save_counting_model

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "end"]


def open_session(model: Any) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def decoder() -> DecoderSession:
    return DecoderSession(open_session(counting_model()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose tokenizer's words are numbers; "end" ends a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = save_counting_model(tmp_path_factory.mktemp("folder"))
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="zero"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [WORDS.index("end")]}))
    return path


def step(decoder: DecoderSession, tokens: list[int], cache: Any) -> tuple[int, Any]:
    mask = np.ones((1, cache.tokens + len(tokens)), np.int64)
    logits, cache = decoder.step(np.array([tokens]), mask, cache)
    assert logits.shape == (1, len(tokens), 11)
    return int(logits[0, -1].argmax()), cache


def test_a_cache_serves_several_continuations(decoder: DecoderSession) -> None:
    token, cache = step(decoder, [3, 4], decoder.empty_cache(1))
    assert (token, cache.tokens) == (7, 2)
    for more in ([1], [2, 2], [1]):
        token, longer = step(decoder, more, cache)
        assert token == next_token([3, 4, *more])
        assert decoder.read(longer)["past_key_values.0.key"].ravel().tolist() == [3, 4, *more]


def test_the_next_step_reads_what_the_last_one_wrote(decoder: DecoderSession) -> None:
    """No copy on the way: the memory of an output is that of the next input."""
    _, cache = step(decoder, [3, 4], decoder.empty_cache(1))
    addresses = [value.data_ptr() for value in cache.values]
    cache.values[0].update_inplace(np.array([5, 4], np.float32).reshape(1, 1, 2, 1))
    token, _ = step(decoder, [1], cache)
    assert [value.data_ptr() for value in cache.values] == addresses
    assert token == next_token([5, 4, 1])


def test_greedy_text(decoder: DecoderSession) -> None:
    assert list(generate_tokens(decoder, [3, 5], 20)) == continuation([3, 5], 20)


def test_a_long_prompt_runs_in_parts(decoder: DecoderSession, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [1, 2, 3, 4, 5, 6, 7]
    monkeypatch.setattr(generate, "PROMPT_CHUNK", 3)
    assert list(generate_tokens(decoder, prompt, 4)) == continuation(prompt, 4)


def test_the_last_token_says_what_comes_next() -> None:
    """A decoder whose logits at each position name the token there."""

    class Echo:
        def empty_cache(self, _batch: int) -> Any:
            return SimpleNamespace(tokens=0)

        def step(self, input_ids: Any, _attention_mask: Any, cache: Any) -> Any:
            return np.eye(11, dtype=np.float32)[input_ids], SimpleNamespace(tokens=cache.tokens + input_ids.shape[1])

    decoder: Any = Echo()
    assert list(generate_tokens(decoder, [3, 5, 7], 2)) == [7, 7]


def test_a_stop_token_ends_the_text(decoder: DecoderSession) -> None:
    # 1 → 1, 2, 4, 8, 5, 10: ten stops it, and is not part of it.
    timing = Timing()
    assert list(generate_tokens(decoder, [1], 99, stop=[10], timing=timing)) == [1, 2, 4, 8, 5]
    assert (timing.prompt_tokens, timing.new_tokens) == (1, 6)
    assert "prompt 1 tokens" in str(timing)


def test_seeds(decoder: DecoderSession) -> None:
    texts = [list(generate_tokens(decoder, [1], 12, sampling=Sampling(1.0, seed=seed))) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_misuse(decoder: DecoderSession) -> None:
    with pytest.raises(InvalidInputError, match="holds no token"):
        next(generate_tokens(decoder, [], 1))
    with pytest.raises(InvalidInputError, match="max_new_tokens=0"):
        next(generate_tokens(decoder, [1], 0))
    with pytest.raises(InvalidInputError, match=r"attention_mask is \[1, 3\].*must be \[1, 2\]"):
        decoder.step(np.array([[1, 2]]), np.ones((1, 3), np.int64), decoder.empty_cache(1))
    with pytest.raises(InvalidModelError, match=r"no exported decoder.*present\.0\.value"):
        DecoderSession(open_session(counting_model(without="present.0.value")))


def test_command(folder: Path) -> None:
    result = CliRunner().invoke(app, ["generate", str(folder), "one", "--raw", "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == ["one", "two", "four", "eight", "five"]
    assert "tokens/s" in result.stderr


def test_command_reads_standard_input(folder: Path) -> None:
    arguments = ["generate", str(folder), "-", "--max-new-tokens", "2", "--temperature", "0.01", "--seed", "4"]
    assert CliRunner().invoke(app, arguments, input="three four").stdout.split() == ["seven", "three"]


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0, seed=1), Sampling(1.0, top_k=2, seed=3), Sampling(2.0, top_p=0.3, seed=3)]
)
def test_command_samples_as_it_is_told(sampling: Sampling, folder: Path, decoder: DecoderSession) -> None:
    options = {"temperature": sampling.temperature, "top-k": sampling.top_k, "top-p": sampling.top_p}
    arguments = [f"--{name}={value}" for name, value in {**options, "seed": sampling.seed}.items()]
    result = CliRunner().invoke(app, ["generate", str(folder), "one", "--raw", "--max-new-tokens=9", *arguments])
    expected = generate_tokens(decoder, [1], 9, sampling=sampling, stop=[WORDS.index("end")])
    assert result.stdout.split() == [WORDS[token] for token in expected]


def test_chat_template(folder: Path) -> None:
    model = ModelFolder(folder)
    with pytest.raises(InvalidModelError, match="no chat template"):
        model.encode("one", chat=True)
    model.tokenizer.chat_template = "two {{ messages[0]['content'] }} three"
    assert model.encode("one") == [2, 1, 3]
    assert model.encode("one", chat=False) == [1]


def test_text_waits_for_whole_characters(folder: Path) -> None:
    class Bytes:
        """A tokenizer whose tokens are bytes, and that drops a leading space."""

        def decode(self, tokens: list[int], **_options: Any) -> str:
            return bytes(tokens).decode("utf-8", errors="replace").removeprefix(" ")

    model = ModelFolder(folder)
    model.__dict__["tokenizer"] = Bytes()
    pieces = list(model.decode("aé b€".encode()))
    assert pieces == ["a", "é", " ", "b", "€"]
    assert list(model.decode("a€".encode()[:-1])) == ["a", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "holds no model.onnx"),
        (("model.onnx",), "holds no tokenizer.json"),
        (("model.onnx", "generation_config.json"), "generation_config.json cannot be read"),
    ],
)
def test_folders_that_are_none(files: tuple[str, ...], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{")
    with pytest.raises(OnnxMoeError, match=message):
        assert ModelFolder(tmp_path).stop_tokens is ModelFolder(tmp_path).encode("x")


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="is no folder"):
        ModelFolder(tmp_path / "missing")
