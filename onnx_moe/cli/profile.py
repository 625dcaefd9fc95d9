"""`onnx-moe profile`: report how a model uses its experts, from a run on text or from a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from onnx_moe.cli.routing_output import progress_bar, write_profile
from onnx_moe.cli.text import parse_bytes
from onnx_moe.errors import InvalidInputError
from onnx_moe.generation.folder import MODEL_NAME, ModelFolder, load_tokenizer
from onnx_moe.routing import RoutingProfile, load_trace, profile_trace
from onnx_moe.routing.text_runs import Requests, profile_text


def profile(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|TRACE",
            help="A decoder that onnx-moe exported (folder or .onnx), run on --text; or a trace (.npz, .jsonl, .csv).",
        ),
    ],
    text: Annotated[
        list[Path] | None, typer.Option(help="A text file for the model; give the option again for more.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with the model's tokenizer; without it, the folder of MODEL.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where to write: OUTPUT.html, OUTPUT.json, OUTPUT.npz. [default: MODEL-routing]")
    ] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Tokens of each prompt. [default: 128]")] = None,
    decoded_tokens: Annotated[
        int | None, typer.Option(help="Tokens that follow it, one at a time: the text's own. [default: 128]")
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Pieces of each file, at the most. [default: 8]")] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts of a token, where a trace does not tell.")] = None,
    expert_bytes: Annotated[str | None, typer.Option(help="Bytes of one expert of a trace, such as 2.5MB.")] = None,
) -> None:
    """Report how a model uses its experts, from a run on text or a trace: what to keep in memory, and how much."""
    console = Console()
    of_model = {"text": text or None, "tokenizer": tokenizer, "prompt-tokens": prompt_tokens}
    of_model |= {"decoded-tokens": decoded_tokens, "requests": requests}
    of_trace = {"top-k": top_k, "expert-bytes": expert_bytes}
    is_trace = source.suffix in (".npz", ".jsonl", ".csv")
    useless = [name for name, value in (of_model if is_trace else of_trace).items() if value is not None]
    if useless:
        kind = "a trace" if is_trace else "a model"
        raise InvalidInputError(f"--{useless[0]} does nothing for {kind} such as {source.name}: leave it out.")
    with progress_bar(console) as progress:
        if is_trace:
            size = None if expert_bytes is None else parse_bytes(expert_bytes, "expert bytes")
            calls = load_trace(source, top_k=top_k)
            found = profile_trace(calls, name=source.stem, expert_bytes=size, source=source.name, progress=progress)
        else:
            defaults = Requests()
            sizes = Requests(
                defaults.prompt_tokens if prompt_tokens is None else prompt_tokens,
                defaults.decoded_tokens if decoded_tokens is None else decoded_tokens,
                defaults.most if requests is None else requests,
            )
            found = _run(source, text or [], tokenizer, sizes, progress)
    name = source.name if source.is_dir() else source.stem
    write_profile(console, found, output or source.with_name(f"{name}-routing"))


def _run(
    model: Path, text: list[Path], tokenizer: Path | None, sizes: Requests, progress: Callable[[str, float], None]
) -> RoutingProfile:
    if not text:
        raise InvalidInputError(f"{model} needs text to run on: give --text FILE, once or more often.")
    if model.is_dir():
        model = ModelFolder(model).path / MODEL_NAME
    tokenize = load_tokenizer(tokenizer or model.parent)
    texts = [(path.name, np.array(tokenize(_read(path))["input_ids"], np.int64)) for path in text]
    return profile_text(model, texts, sizes, progress)


def _read(path: Path) -> str:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read as text: {error}.") from error
    if not content.strip():
        raise InvalidInputError(f"{path} holds no text.")
    return content
