"""`onnx-moe generate`: text from an exported folder, as it is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import onnxruntime
import typer
from rich.console import Console

from onnx_moe.errors import InvalidInputError


def generate(
    folder: Annotated[Path, typer.Argument(help="Holds model.onnx, its tokenizer and configuration.")],
    prompt: Annotated[str, typer.Argument(help="The text to go on from; - reads it from standard input.")],
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; higher is freer.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw of the fewest likeliest tokens that hold this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw of so many likeliest tokens; 0 of all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same text.")] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--raw", help="In the model's chat template, by default if it has one.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of ONNX Runtime; 0 leaves it to choose.")] = 0,
    session_entry: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An entry of the session, such as onnx_moe.kernel=...")
    ] = None,
) -> None:
    """Write text with an exported model."""
    from onnx_moe.generation import ModelFolder, Sampling, Timing, generate_tokens

    model = ModelFolder(folder)
    sampling = Sampling(temperature, top_k, top_p, seed)
    tokens = model.encode(sys.stdin.read() if prompt == "-" else prompt, chat)
    notes = Console(stderr=True)
    with notes.status(f"loading {folder}"):
        decoder = model.open(_session_options(threads, session_entry or []))
    timing = Timing()
    written = generate_tokens(decoder, tokens, max_new_tokens, sampling=sampling, stop=model.stop_tokens, timing=timing)
    for piece in model.decode(written):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    notes.print(str(timing), style="dim", highlight=False)


def _session_options(threads: int, entries: list[str]) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for entry in entries:
        key, separator, value = entry.partition("=")
        if not separator or not key:
            raise InvalidInputError(f"--session-entry {entry!r} is not KEY=VALUE.")
        options.add_session_config_entry(key, value)
    return options
