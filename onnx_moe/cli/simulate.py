"""`onnx-moe simulate`: the routing of a known model, drawn, without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from onnx_moe.cli.routing_output import progress_bar, write_profile


def simulate(
    model: Annotated[str, typer.Argument(help="A known model, such as glm-4.7-flash; a wrong name lists others.")],
    tokens: Annotated[int, typer.Option(help="Decoded tokens.")] = 1000,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prompt before each request.")] = 32,
    request_tokens: Annotated[
        int, typer.Option(help="Decoded tokens of a request; each has a topic of its own.")
    ] = 256,
    seed: Annotated[int, typer.Option(help="The same seed draws the same routing.")] = 42,
    format: Annotated[str, typer.Option(help="Of the experts, for their bytes: mxfp4, nvfp4 or fp4.")] = "mxfp4",
    output: Annotated[
        Path | None,
        typer.Option(help="Where to write: OUTPUT.html, OUTPUT.json, OUTPUT.npz. [default: MODEL-simulated]"),
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Write the routing, too: .npz, .jsonl or .csv.")] = None,
) -> None:
    """Draw the routing of a known model (popularity, repetition, topics) and report on it: a first guess at a plan."""
    from onnx_moe.routing import known_model, profile_trace, save_trace, simulate_routing
    from onnx_moe.routing.sources import check_trace_suffix

    if trace is not None:
        check_trace_suffix(trace)

    console = Console()
    known = known_model(model)
    expert_bytes = known.expert_bytes(format)
    with progress_bar(console) as progress:
        drawn = simulate_routing(
            known,
            tokens,
            prompt_tokens=prompt_tokens,
            request_tokens=request_tokens,
            seed=seed,
            progress=lambda share: progress("drawing", share),
        )
        source = f"simulated, seed {seed}"
        profile = profile_trace(drawn, name=known.name, expert_bytes=expert_bytes, source=source, progress=progress)
    if trace is not None:
        save_trace(drawn, trace)
    write_profile(console, profile, output or Path(f"{known.name}-simulated"))
