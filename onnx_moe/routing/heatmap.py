"""A picture of a profile: four panels, for a terminal user or a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnx_moe.errors import InvalidInputError, OnnxMoeError
from onnx_moe.routing.experts import ExpertCooccurrence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from onnx_moe.routing.profile import RoutingProfile


def plot(profile: RoutingProfile, path: Path | None, show: bool) -> None:
    """Writes the picture, in the format of the path's suffix (makes folders), shows it on the screen, or both.

    Raises InvalidInputError for neither, OnnxMoeError without matplotlib.
    """
    if path is None and not show:
        raise InvalidInputError("the picture goes nowhere: give output_path, or show=True.")
    try:
        from matplotlib import pyplot
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OnnxMoeError(f"a picture needs matplotlib ({error}): pip install matplotlib") from error
    # pyplot keeps figures for ever, so only one that it is to show is its own.
    make = pyplot.figure if show else Figure
    figure = make(figsize=(13, 9), layout="constrained")
    draw(profile, figure)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    if show:
        pyplot.show()
        pyplot.close(figure)


def draw(profile: RoutingProfile, figure: Figure) -> None:
    """Draws the four panels."""
    shares, pairs, correlations, evenness = figure.subplots(2, 2).reshape(-1)
    counts = profile.counts.counts.sum(0)
    image = shares.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), aspect="auto", cmap="viridis")
    shares.set(title="share of a layer's selections", xlabel="expert", ylabel="layer")
    figure.colorbar(image, ax=shares)

    layers = [layer for layer in profile.layers if layer.total_tokens]
    layer = min(layers, key=lambda each: each.entropy).layer_idx if layers else 0
    lift = ExpertCooccurrence.of(profile.counts, [layer]).lift
    assert lift is not None
    image = pairs.imshow(np.log2(np.maximum(lift, 0.25)), cmap="RdBu_r", vmin=-2, vmax=2)
    pairs.set(title=f"chosen together, layer {layer}: log2 lift", xlabel="expert", ylabel="expert")
    figure.colorbar(image, ax=pairs)

    found = profile.predictability.layer_correlations
    image = correlations.imshow(found, cmap="RdYlGn", vmin=-1, vmax=1)
    correlations.set(title="correlation of layers’ choices, by expert number", xlabel="layer", ylabel="layer")
    figure.colorbar(image, ax=correlations)
    numbers = [each.layer_idx for each in layers]
    evenness.plot(numbers, [each.entropy for each in layers], label="entropy (1 = even)")
    evenness.plot(numbers, [each.gini_coefficient for each in layers], label="Gini (0 = even)")
    evenness.set(title="evenness", xlabel="layer", ylim=(0, 1))
    evenness.legend()
