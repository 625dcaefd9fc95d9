"""One MoE block at GLM-4.7-Flash's real width: what it becomes, how exact and how fast it is."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import Glm4MoeLiteConfig
from transformers.models.glm4_moe_lite.modeling_glm4_moe_lite import Glm4MoeLiteMoE

import onnx_moe
from onnx_moe.demo.qmoe import qmoe_session
from onnx_moe.demo.timing import median_seconds
from onnx_moe.inspection import inspect_model
from onnx_moe.quantization import QuantizedWeights, dequantize, quantize

HIDDEN_SIZE, INTERMEDIATE_SIZE, NUM_EXPERTS, TOP_K = 2048, 1536, 64, 4
TOKEN_COUNTS = (1, 128)
#: Tokens that the float64 reference evaluates: it decodes every expert that they reach.
_REFERENCE_TOKENS = 8
_INPUT_SETS = 8
#: Seconds of a call of all implementations together from which on they are not repeated: where QMoE has no vector code
#: for FP4 (without AVX-512), its 128 tokens take half a minute.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Implementation:
    """One row of the demo's table. Errors are relative to float64 evaluations: of the weights that the implementation
    computes with (its arithmetic's error), and of the original ones (which adds what FP4 costs). Seconds by tokens.
    """

    name: str
    nbytes: int
    arithmetic_error: float
    total_error: float
    seconds: dict[int, float]


@dataclass(frozen=True)
class BlockResult:
    """The demo's block: its nodes, and how each implementation does."""

    nodes: Counter[str]
    implementations: list[Implementation]


def make_block() -> Glm4MoeLiteMoE:
    """GLM-4.7-Flash's MoE block in bfloat16 with seeded random weights."""
    config = Glm4MoeLiteConfig(
        hidden_size=HIDDEN_SIZE,
        moe_intermediate_size=INTERMEDIATE_SIZE,
        n_routed_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        n_shared_experts=1,
    )
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    with torch.device("meta"):
        block = Glm4MoeLiteMoE(config).to(torch.bfloat16)
    block = block.to_empty(device="cpu").eval().requires_grad_(False)
    for name, tensor in itertools.chain(block.named_parameters(), block.named_buffers()):
        tensor.normal_(0.0, 0.01 if "correction_bias" in name else 0.02)
    return block


def _silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / (1.0 + np.exp(-x))


def _mlp(x: NDArray[np.float64], gate_up: NDArray[np.float64], down: NDArray[np.float64]) -> NDArray[np.float64]:
    gate, up = np.split(gate_up @ x, 2)
    return down @ (_silu(gate) * up)


class Float64Reference:
    """The block in float64 on given weights: `gate_up(e)` and `down(e)`, e = NUM_EXPERTS for the shared expert."""

    def __init__(self, block: Glm4MoeLiteMoE) -> None:
        self._gate = block.gate.weight.double().numpy()
        self._bias = block.gate.e_score_correction_bias.double().numpy()
        self._scaling = float(block.config.routed_scaling_factor)

    def route(self, x: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Experts [T, k] and their weights for x [T, H]."""
        scores = 1.0 / (1.0 + np.exp(-(x.astype(np.float64) @ self._gate.T)))
        ids = np.argsort(-(scores + self._bias), axis=1, kind="stable")[:, :TOP_K]
        weights = np.take_along_axis(scores, ids, axis=1)
        return ids, weights / (weights.sum(axis=1, keepdims=True) + 1e-20) * self._scaling

    def evaluate(
        self,
        x: NDArray[np.float32],
        projections: Callable[[int], tuple[NDArray[np.float64], NDArray[np.float64]]],
    ) -> NDArray[np.float64]:
        """The block's output for x [T, H]."""
        ids, weights = self.route(x)
        output = np.zeros(x.shape)
        for expert in [*np.unique(ids).tolist(), NUM_EXPERTS]:
            gate_up, down = projections(expert)
            for token in range(len(x)):
                weight = 1.0 if expert == NUM_EXPERTS else float(weights[token][ids[token] == expert].sum())
                if weight:
                    output[token] += weight * _mlp(x[token].astype(np.float64), gate_up, down)
        return output


def _relative_error(actual: NDArray[np.floating], expected: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _original_weights(block: Glm4MoeLiteMoE, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
    if expert < NUM_EXPERTS:
        return block.experts.gate_up_proj[expert], block.experts.down_proj[expert]
    shared = block.shared_experts
    return torch.cat([shared.gate_proj.weight, shared.up_proj.weight]), shared.down_proj.weight


def run_block(folder: Path, progress: Callable[[str], None]) -> BlockResult:
    """Exports the block into `folder` and measures Torch, the plugin and ONNX Runtime's QMoE on it."""
    progress("making GLM-4.7-Flash's block (64 experts, 2048 × 1536, bfloat16)")
    block = make_block()
    torch_bytes = sum(parameter.nbytes for parameter in block.parameters())
    reference = Float64Reference(block)
    inputs = _inputs()
    x = inputs[_REFERENCE_TOKENS][0]

    progress("exporting it to ONNX with MXFP4 experts")
    path = folder / "block.onnx"
    example = torch.zeros(1, 2, HIDDEN_SIZE, dtype=torch.bfloat16)
    onnx_moe.export(block, (example,), path, dynamic_shapes=({0: "batch", 1: "sequence"},))
    session = onnx_moe.InferenceSession(path)
    inspection = inspect_model(path)

    progress("quantizing for ONNX Runtime's QMoE")
    gate_up, down = _quantize_all(block)
    peer = qmoe_session(gate_up, down, TOP_K + 1, folder, onnxruntime.SessionOptions())
    peer_feeds = {count: [_peer_feed(reference, rows) for rows in sets] for count, sets in inputs.items()}

    progress("evaluating the float64 reference")

    def fp4(expert: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return _decode(gate_up, expert), _decode(down, expert)

    def original(expert: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        first, second = _original_weights(block, expert)
        return first.double().numpy(), second.double().numpy()

    exact, exact_fp4 = reference.evaluate(x, original), reference.evaluate(x, fp4)

    def run_torch(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            y: NDArray[np.float32] = block(torch.from_numpy(rows)[None].bfloat16())[0].float().numpy()
            return y

    def run_plugin(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        y: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: rows[None]})[0][0]
        return y

    y_torch, y_plugin = run_torch(x), run_plugin(x)
    (y_peer,) = peer.run(None, peer_feeds[_REFERENCE_TOKENS][0])

    progress("timing at 1 and at 128 tokens")
    seconds = {
        count: _time_all(run_torch, run_plugin, peer, inputs[count], peer_feeds[count]) for count in TOKEN_COUNTS
    }

    def timing(name: str) -> dict[int, float]:
        return {count: seconds[count][name] for count in TOKEN_COUNTS}

    peer_bytes = gate_up.nbytes + down.nbytes
    return BlockResult(
        nodes=Counter(node.operator for node in inspection.nodes),
        implementations=[
            Implementation(
                "Torch bfloat16",
                torch_bytes,
                _relative_error(y_torch, exact),
                _relative_error(y_torch, exact),
                timing("torch"),
            ),
            Implementation(
                "plugin",
                inspection.nbytes,
                _relative_error(y_plugin, exact_fp4),
                _relative_error(y_plugin, exact),
                timing("plugin"),
            ),
            Implementation(
                "QMoE",
                peer_bytes,
                _relative_error(y_peer, exact_fp4),
                _relative_error(y_peer, exact),
                timing("peer"),
            ),
        ],
    )


def _quantize_all(block: Glm4MoeLiteMoE) -> tuple[QuantizedWeights, QuantizedWeights]:
    """Both projections of all experts in MXFP4, the shared expert as one more."""
    routed = (quantize(block.experts.gate_up_proj), quantize(block.experts.down_proj))
    shared = (quantize(weight[None]) for weight in _original_weights(block, NUM_EXPERTS))
    gate_up, down = (
        QuantizedWeights(
            np.concatenate([many.weights, one.weights]),
            np.concatenate([many.scales, one.scales]),
            None,
            many.format,
            many.block_size,
        )
        for many, one in zip(routed, shared, strict=True)
    )
    return gate_up, down


def _decode(weights: QuantizedWeights, expert: int) -> NDArray[np.float64]:
    one = QuantizedWeights(weights.weights[expert], weights.scales[expert], None, weights.format, weights.block_size)
    return dequantize(one).astype(np.float64)


def _inputs() -> dict[int, list[NDArray[np.float32]]]:
    """Fresh rows for every call, so that experts come from memory, not from the cache."""
    random = np.random.default_rng(1)
    counts = {*TOKEN_COUNTS, _REFERENCE_TOKENS}
    return {
        count: [random.standard_normal((count, HIDDEN_SIZE), dtype=np.float32) for _ in range(_INPUT_SETS)]
        for count in counts
    }


def _peer_feed(reference: Float64Reference, x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """QMoE's inputs: it knows neither sigmoid routers nor shared experts, so it gets the choice and the weights made,
    and the shared expert as one that every token chooses.
    """
    ids, weights = reference.route(x)
    ids = np.concatenate([ids, np.full((len(x), 1), NUM_EXPERTS)], axis=1)
    weights = np.concatenate([weights, np.ones((len(x), 1))], axis=1)
    keys = np.zeros((len(x), NUM_EXPERTS + 1), np.float32)
    dense = np.zeros_like(keys)
    np.put_along_axis(keys, ids, 1.0, axis=1)
    np.put_along_axis(dense, ids, weights.astype(np.float32), axis=1)
    return {"x": x, "keys": keys, "weights": dense}


def _time_all(
    run_torch: Callable[[NDArray[np.float32]], object],
    run_plugin: Callable[[NDArray[np.float32]], object],
    peer: onnxruntime.InferenceSession,
    inputs: list[NDArray[np.float32]],
    peer_feeds: list[dict[str, NDArray[np.float32]]],
) -> dict[str, float]:
    rows = {name: itertools.cycle(inputs) for name in ("torch", "plugin")}
    feeds = itertools.cycle(peer_feeds)
    runs: dict[str, Callable[[], object]] = {
        "torch": lambda: run_torch(next(rows["torch"])),
        "plugin": lambda: run_plugin(next(rows["plugin"])),
        "peer": lambda: peer.run(None, next(feeds)),
    }
    once = median_seconds(runs, rounds=1, burst=1)
    if sum(once.values()) > _PATIENCE:
        return once
    return median_seconds(runs, rounds=4, burst=9) if len(inputs[0]) == 1 else median_seconds(runs, rounds=2, burst=4)
