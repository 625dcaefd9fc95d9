"""The trained model through the whole job: the same text and perplexity in Torch, with the plugin and without."""

from __future__ import annotations

from pathlib import Path

from onnx_moe.demo.text import run_text


def test_trained_model(tmp_path: Path) -> None:
    steps: list[str] = []
    result = run_text(tmp_path, steps.append)
    assert result.agreeing_tokens == result.new_tokens == 80
    # A bigram model of the same tokenizer has 78.9 on this text; the card's 9.1 is over longer windows than the demo's.
    assert result.perplexity_torch < 14
    assert result.perplexity_torch < result.perplexity_plugin < 1.05 * result.perplexity_torch
    # Both compute in float32, in another order.
    assert abs(result.perplexity_stock - result.perplexity_plugin) < 1e-4 * result.perplexity_plugin
    # 17/32 of a byte for a weight of the 65 experts of 3 layers, 4 bytes for any other; on top, at most a page of
    # alignment for each of the two dozen large tensors, and the graph.
    expert_parameters = 3 * 65 * 3 * 128 * 64
    expected = expert_parameters * 17 / 32 + 4 * (result.parameters - expert_parameters)
    assert expected < result.model_bytes < expected + 24 * 65536 + 200_000
    assert len(steps) >= 4
