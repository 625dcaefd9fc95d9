"""Quantising weights: error against other quantisers', and speed: python -m bench.quantise."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.quantise_peers import Quantiser, installed_peers, ours
from onnx_moe import quantize

#: Rows and columns of random weights; of an expert of GLM-4.7-Flash.
_ROWS, _COLUMNS = 1536, 2048


def distributions() -> dict[str, torch.Tensor]:
    """Weights [N, K] of each kind; the last are gate and up projections of the trained model that ships."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(_ROWS, _COLUMNS, generator=generator)
    uniform = torch.rand(_ROWS, _COLUMNS, generator=generator).clamp(1e-7, 1 - 1e-7) - 0.5
    rare = torch.rand(_ROWS, _COLUMNS, generator=generator) < 0.002
    return {
        "Gaussian": 0.02 * normal,
        "Laplace": -0.02 * uniform.sign() * (1 - 2 * uniform.abs()).log(),
        "outlier-heavy": 0.02 * torch.where(rare, 30 * normal, normal),
        "trained experts": _trained_experts(),
    }


def _trained_experts() -> torch.Tensor:
    from safetensors.torch import load_file

    with as_file(files("onnx_moe") / "data" / "tiny-glm" / "model.safetensors") as path:
        tensors = load_file(path)
    up = [
        tensor.float()
        for name, tensor in sorted(tensors.items())
        if ".mlp.experts." in name and "down_proj" not in name
    ]
    return torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in up])


def measured_quantisers(console: Console) -> list[Quantiser]:
    """Ours and those that are installed, by format, ours first."""
    return sorted([*ours(), *installed_peers(console)], key=lambda quantiser: (quantiser.format, not quantiser.is_ours))


def squared_errors(quantisers: list[Quantiser]) -> dict[str, dict[str, float]]:
    """Σ (decoded - w)² / Σ w², by distribution and "quantiser, format"."""
    errors: dict[str, dict[str, float]] = {}
    for name, weights in distributions().items():
        total = weights.double().square().sum()
        errors[name] = {
            f"{quantiser.name} ({quantiser.format})": float(
                (quantiser.run(weights).double() - weights.double()).square().sum() / total
            )
            for quantiser in quantisers
        }
    return errors


def speeds() -> dict[str, float]:
    """GB of bfloat16 input a second on every core, by "format, scale rule": the best of five runs on eight experts."""
    weights = (0.02 * torch.randn(8, _ROWS, _COLUMNS, generator=torch.Generator().manual_seed(1))).bfloat16()

    def seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return {
        f"{format}, {scale}": weights.nbytes
        / 1e9
        / min(seconds(lambda format=format, scale=scale: quantize(weights, format, scale=scale)) for _ in range(5))
        for format in ("mxfp4", "nvfp4", "fp4")
        for scale in ("even", "mse")
    }


def main(
    speed: Annotated[bool, typer.Option(help="Measure speed, too.")] = True,
    output: Annotated[Path | None, typer.Option(help="Write every figure there, as JSON.")] = None,
) -> None:
    """Weight error of each quantiser that is installed, ours first, and our speed."""
    console = Console()
    quantisers = measured_quantisers(console)
    errors = squared_errors(quantisers)
    table = Table(title="squared error of weights, in 1/1000 of their squares (less is better)")
    table.add_column("quantiser")
    for name in errors:
        table.add_column(name, justify="right")
    for format in ("mxfp4", "nvfp4"):
        for quantiser in (q for q in quantisers if q.format == format):
            key = f"{quantiser.name} ({format})"
            cells = [f"{1000 * by_quantiser[key]:.2f}" for by_quantiser in errors.values()]
            table.add_row(key, *cells, style="bold" if quantiser.is_ours else "")
        table.add_section()
    console.print(table)
    figures: dict[str, object] = {"squared_errors": errors}
    if speed:
        figures["gigabytes_a_second"] = by_rule = speeds()
        console.print("GB/s of bfloat16: " + "; ".join(f"{name} {value:.2f}" for name, value in by_rule.items()))
    if output is not None:
        output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
