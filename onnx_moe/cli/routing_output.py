"""What the routing commands have in common: progress, and a profile shown and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from onnx_moe.cli.text import megabytes
from onnx_moe.routing import RoutingProfile


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[str, float], None]]:
    """A bar; call what it gives with a stage and the share of it that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        task = bars.add_task("starting", total=1.0)
        yield lambda stage, share: bars.update(task, description=stage, completed=share)


def write_profile(console: Console, profile: RoutingProfile, output: Path) -> None:
    """Writes OUTPUT.html, .json and .npz, and says the most important."""
    from onnx_moe.routing.report import advice, write_report

    with console.status("simulating caches and scoring predictors"):
        document = profile.document()
    paths = [write_report(document, output.with_name(output.name + suffix)) for suffix in (".html", ".json")]
    paths.append(output.with_name(output.name + ".npz"))
    profile.save(paths[-1])
    show_profile(console, profile)
    console.print(Padding(advice(document), (1, 0)), highlight=False)
    written = ", ".join(f"{path} ({megabytes(path.stat().st_size)})" for path in paths)
    console.print(f"Written: {written}.", highlight=False, soft_wrap=True)


def show_profile(console: Console, profile: RoutingProfile) -> None:
    """A table of the figures that one looks at first."""
    model, counts = profile.model, profile.counts
    prefill, decode = counts["tokens"].max(1).tolist()
    layers = [layer for layer in profile.layers if layer.total_tokens]
    table = Table(title=model.name, show_header=False, box=None)
    table.add_row("layers × experts, top-k", f"{model.num_layers} × {model.num_experts}, {model.top_k}")
    table.add_row("tokens", f"{prefill} of prompts, {decode} decoded, {int(counts['requests'][0])} requests")
    entropies = [layer.entropy for layer in layers]
    mean = sum(entropies) / len(entropies)
    table.add_row(
        "entropy of use (1 = even)", f"{mean:.2f}, from {min(entropies):.2f} to {max(entropies):.2f} by layer"
    )
    active = [layer.active_experts for layer in layers]
    table.add_row("experts in use by layer", f"{min(active)} to {max(active)} of {model.num_experts}")
    shared, tokens = (counts[name][:, :, 0].sum() for name in ("lag_shared", "lag_tokens"))
    if tokens:
        table.add_row("shared with the token before", f"{shared / (tokens * model.top_k):.0%} of its experts")
    if model.expert_bytes is not None:
        bank = model.num_layers * model.num_experts * model.expert_bytes
        table.add_row("experts", f"{megabytes(bank)}, {megabytes(model.expert_bytes)} each")
    console.print(table)
