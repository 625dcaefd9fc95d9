"""A picture of a profile: four panels, for a terminal user or a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnx_moe.errors import OnnxMoeError
from onnx_moe.routing.experts import ExpertCooccurrence

if TYPE_CHECKING:
    from onnx_moe.routing.profile import RoutingProfile


def plot(profile: RoutingProfile, path: Path) -> None:
    """Writes the picture, in the format of the path's suffix; makes folders. OnnxMoeError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OnnxMoeError(f"a picture needs matplotlib ({error}): pip install matplotlib") from error
    figure = Figure(figsize=(13, 9), layout="constrained")
    shares, pairs, recall, evenness = figure.subplots(2, 2).reshape(-1)
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

    recall.bar(range(profile.model.num_layers), np.nan_to_num(profile.predictability.table_recall))
    recall.set(title="share foretold by the layer before", xlabel="layer", ylim=(0, 1))
    numbers = [each.layer_idx for each in layers]
    evenness.plot(numbers, [each.entropy for each in layers], label="entropy (1 = even)")
    evenness.plot(numbers, [each.gini for each in layers], label="Gini (0 = even)")
    evenness.set(title="evenness", xlabel="layer", ylim=(0, 1))
    evenness.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
