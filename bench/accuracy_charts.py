"""Pictures of what FP4 costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.accuracy_text import Cost

_OURS, _OTHERS = "#0969da", "#8c959f"


def save(path: Path, draw: Callable[[Figure], None], size: tuple[float, float] = (10, 3.8)) -> None:
    """Writes the picture that `draw` makes."""
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    figure.savefig(path, dpi=120)


def _tidy(axes: Any, axis: str) -> None:
    axes.grid(axis=axis, color="#d8dee4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_weights(figure: Figure, errors: Mapping[str, Mapping[str, float]]) -> None:
    """Squared error by distribution and quantiser: a panel for each format, ours first in each group."""
    for axes, format in zip(figure.subplots(1, 2), ("mxfp4", "nvfp4"), strict=True):
        names = [name for name in next(iter(errors.values())) if name.endswith(f"({format})")]
        width = 0.8 / len(names)
        for place, name in enumerate(names):
            axes.bar(
                [group + (place - (len(names) - 1) / 2) * width for group in range(len(errors))],
                [1000 * by_quantiser[name] for by_quantiser in errors.values()],
                0.9 * width,
                label=name.removesuffix(f" ({format})"),
                color=_OURS if place == 0 else f"{0.35 + 0.5 * place / len(names)}",
            )
        axes.set_xticks(range(len(errors)), list(errors), fontsize=8)
        axes.set(title=f"{format}: squared error of weights, ‰ of their squares")
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
        axes.legend(fontsize=7, ncols=2, loc="upper center")
        _tidy(axes, "y")


def draw_costs(figure: Figure, costs: Sequence[Cost]) -> None:
    """Increase of perplexity, % with 95 % intervals, least on top."""
    axes = figure.subplots()
    some = sorted(costs, key=lambda cost: -cost.increase.mean)
    for place, cost in enumerate(some):
        increase = cost.increase
        axes.plot((increase.low, increase.high), (place, place), color=_colour(cost), linewidth=2)
        axes.plot(increase.mean, place, "o", color=_colour(cost))
    axes.set_yticks(range(len(some)), [cost.name for cost in some], fontsize=8)
    axes.set(title="increase of perplexity, %", xlim=(0, None))
    _tidy(axes, "x")


def _colour(cost: Cost) -> str:
    return _OURS if cost.name.startswith("onnx-moe") else _OTHERS
