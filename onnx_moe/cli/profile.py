"""`onnx-moe profile`: run a model on text and report how it uses its experts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from onnx_moe.cli.routing_output import progress_bar, write_profile
from onnx_moe.errors import InvalidInputError


def profile(
    model: Annotated[Path, typer.Argument(help="A decoder that onnx-moe exported (.onnx).")],
    text: Annotated[list[Path], typer.Option(help="A text file; give the option again for more.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with the model's tokenizer; without it, the folder of MODEL.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where to write: OUTPUT.html, OUTPUT.json, OUTPUT.npz. [default: MODEL-routing]")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 128,
    decoded_tokens: Annotated[int, typer.Option(help="Tokens that follow it, one at a time: the text's own.")] = 128,
    requests: Annotated[int, typer.Option(help="Pieces of each file, at the most.")] = 8,
) -> None:
    """Run a model on text and report how it uses its experts: what to keep in memory, and how much of it."""
    from onnx_moe.routing.text_runs import Requests, load_tokenizer, profile_text

    console = Console()
    encode = load_tokenizer(tokenizer or model.parent)
    texts = [(path.name, encode(_read(path))) for path in text]
    with progress_bar(console) as progress:
        found = profile_text(model, texts, Requests(prompt_tokens, decoded_tokens, requests), progress)
    write_profile(console, found, output or model.with_name(f"{model.stem}-routing"))


def _read(path: Path) -> str:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read as text: {error}.") from error
    if not content.strip():
        raise InvalidInputError(f"{path} holds no text.")
    return content
