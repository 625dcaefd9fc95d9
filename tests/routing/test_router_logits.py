"""From a run with router_logits=True to load-balancing values: section 2 of the specification as a metric of health."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import onnx_moe
from onnx_moe.dispatch import compute_load_balancing_loss
from onnx_moe.errors import InvalidInputError
from onnx_moe.nn import SparseMoE
from onnx_moe.routing import MoERoutingProfiler, balance_of, record, router_probabilities

EXPERTS, TOP_K = 8, 2


def test_a_run_s_logits_give_its_balance(tmp_path: Path) -> None:
    """Session → logits and ids → probabilities → the value of each layer and phase, and the loss on the same tokens;
    both against Torch's own softmax of the layer's gate.
    """
    torch.manual_seed(0)
    layer = SparseMoE(64, 32, EXPERTS, TOP_K)
    path = tmp_path / "layer.onnx"
    dynamic = ({0: "tokens"},)
    onnx_moe.export(layer, (torch.randn(5, 64),), path, router_logits=True, dynamic_shapes=dynamic, functions=False)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("onnx_moe.trace", "full")
    session = onnx_moe.InferenceSession(path, options)
    names = [value.name for value in session.get_outputs()]
    (logits_name,) = [name for name in names if name.endswith("router_logits")]
    profiler = MoERoutingProfiler(EXPERTS, 1, TOP_K)
    inputs = [torch.randn(200, 64), *torch.randn(20, 1, 64)]
    losses = []
    for x in inputs:
        with record(session) as recording:
            (logits,) = session.run([logits_name], {session.get_inputs()[0].name: x.numpy()})
        ids = recording.trace.experts.reshape(-1, TOP_K)
        probabilities = router_probabilities(logits)
        profiler.record_routing(0, ids, probabilities)
        losses.append(float(compute_load_balancing_loss(probabilities, ids, EXPERTS)))
    with torch.no_grad():
        expected = [(x @ layer.router.weight.T).softmax(-1).double() for x in inputs]
    for phase, parts in ((0, expected[:1]), (1, expected[1:])):
        rows = torch.cat(parts)
        chosen = rows.topk(TOP_K).indices
        share = torch.bincount(chosen.reshape(-1), minlength=EXPERTS) / chosen.numel()
        value = float(EXPERTS * (share * rows.mean(0)).sum())
        history = balance_of(profiler.counts, phase)
        assert history.basis == "router_probabilities"
        assert history.per_layer[0] == pytest.approx(value, rel=1e-5)
        if phase == 0:
            assert losses[0] == pytest.approx(value, rel=1e-5)


REFERENCE: dict[str, Any] = {
    "softmax": lambda x: x.softmax(-1),
    "softmax_after_topk": lambda x: x.softmax(-1),
    "sigmoid": lambda x: x.sigmoid() / x.sigmoid().sum(-1, keepdim=True),
    "sigmoid_after_topk": lambda x: x.sigmoid() / x.sigmoid().sum(-1, keepdim=True),
    "sqrt_softplus": lambda x: (
        torch.nn.functional.softplus(x).sqrt() / torch.nn.functional.softplus(x).sqrt().sum(-1, keepdim=True)
    ),
}


@pytest.mark.parametrize("scoring", REFERENCE)
def test_probabilities(scoring: str) -> None:
    """Of large logits, too; numpy and every float type of Torch; with a gradient."""
    logits = 30 * torch.randn(7, EXPERTS, dtype=torch.float64)
    expected = REFERENCE[scoring](logits).numpy()
    # Torch's softplus is its argument above 20: e^-20 / 20 of it is missing there.
    error = 1.1e-10 if scoring == "sqrt_softplus" else 1e-12
    np.testing.assert_allclose(router_probabilities(logits.numpy(), scoring), expected, rtol=error, atol=1e-15)
    np.testing.assert_allclose(router_probabilities(logits, scoring).numpy(), expected, rtol=1e-12, atol=1e-15)
    single = router_probabilities(logits.numpy().astype(np.float32), scoring)
    assert single.dtype == np.float32
    # A logit of 60 is known to 4e-6 in float32, and so is its exponential.
    np.testing.assert_allclose(single, expected, rtol=3e-5, atol=1e-30)
    assert router_probabilities(logits.bfloat16(), scoring).dtype == torch.float32
    x = torch.randn(3, EXPERTS, requires_grad=True)
    router_probabilities(x, scoring)[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_an_unknown_scoring() -> None:
    with pytest.raises(InvalidInputError, match="scoring='relu' is unknown: use one of softmax, "):
        router_probabilities(np.zeros((1, 2)), "relu")
