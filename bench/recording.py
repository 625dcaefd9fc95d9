"""What recording routing costs: python -m bench.recording.

A block's time moves by more from run to run than recording takes. So 48 routers are timed that are given logits, the
least work a router can have; what recording adds to one of them is then set against a whole block.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import typer
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

import onnx_moe
from onnx_moe.demo.timing import median_seconds
from onnx_moe.nn import SparseMoE
from onnx_moe.operators import DOMAIN, VERSION

MODES = ("off", "counters", "full")
HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, ROUTERS = 2048, 768, 128, 8, 48


def main() -> None:
    """Measures routers with recording off, of counters and full, and a Qwen3-30B-A3B-shaped block, in one process."""
    table = Table(title=f"{EXPERTS} experts, top-{TOP_K}: microseconds, one thread")
    for heading in ("tokens", "a block", *(f"a router, {mode}" for mode in MODES), "counters / block", "full / block"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory(prefix="onnx-moe-bench-") as folder:
        block = _session(_export_block(Path(folder) / "block.onnx"), "off")
        for tokens in (1, 16, 128):
            random = np.random.default_rng(0)
            x = random.standard_normal((tokens, HIDDEN)).astype(np.float32)
            name = block.get_inputs()[0].name
            whole = median_seconds({"block": lambda x=x, name=name: block.run(None, {name: x})}, 7, 5)["block"]
            logits = random.standard_normal((tokens, EXPERTS)).astype(np.float32)
            sessions = {mode: _session(_routers(), mode) for mode in MODES}
            runs = {
                mode: lambda session=session, logits=logits: session.run(["ids"], {"logits": logits})
                for mode, session in sessions.items()
            }
            seconds = {mode: total / ROUTERS for mode, total in median_seconds(runs, rounds=61, burst=5).items()}
            shares = [f"{100 * (seconds[mode] - seconds['off']) / whole:.3f} %" for mode in MODES[1:]]
            times = [f"{1e6 * seconds[mode]:.2f}" for mode in MODES]
            table.add_row(str(tokens), f"{1e6 * whole:.0f}", *times, *shares)
    Console().print(table)


def _export_block(path: Path) -> Path:
    torch.manual_seed(0)
    layer = SparseMoE(HIDDEN, INTERMEDIATE, EXPERTS, TOP_K)
    example = (torch.randn(3, HIDDEN),)
    onnx_moe.export(layer, example, path, accuracy_level=4, dynamic_shapes=({0: "tokens"},), functions=False)
    return path


def _routers() -> bytes:
    """Routers that all choose by the same logits; their ids are added up, so that none is left out."""
    nodes = [
        helper.make_node("MoERouter", ["logits"], [f"ids{i}", f"weights{i}"], f"router {i}", domain=DOMAIN, top_k=TOP_K)
        for i in range(ROUTERS)
    ]
    nodes.append(helper.make_node("Concat", [f"ids{i}" for i in range(ROUTERS)], ["ids"], axis=0))
    graph = helper.make_graph(
        nodes,
        "routers",
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["tokens", EXPERTS])],
        [helper.make_tensor_value_info("ids", TensorProto.INT32, None)],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def _session(model: Path | bytes, mode: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("onnx_moe.trace", mode)
    return onnx_moe.InferenceSession(model, options)


if __name__ == "__main__":
    typer.run(main)
