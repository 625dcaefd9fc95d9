"""Traces in files: JSON lines, the CSV of other tools, and a compact form of our own."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.csv_traces import csv_rows, load_csv
from onnx_moe.routing.trace import DAMAGED, DECODE, PHASES, PREFILL, Call, RoutingTrace, as_int32, phase_number
from onnx_moe.routing.trace_sizes import TraceSizes

_ID_KEYS = ("expert_ids", "topk_experts", "topk_ids", "experts")
_WEIGHT_KEYS = ("expert_weights", "topk_weights", "weights", "probs")


def load_trace(
    path: str | Path, *, num_experts: int | None = None, num_layers: int | None = None, top_k: int | None = None
) -> RoutingTrace:
    """Reads a trace by the file's suffix: .npz (`save_trace`), .jsonl or .csv (docs/routing.md has their forms).

    The sizes are needed where the file does not tell them: a CSV without a comment or columns that say them, and
    anything in which the last expert or layer never occurs. Raises InvalidInputError that names file and line.
    """
    path = Path(path)
    readers = {".npz": _load_arrays, ".jsonl": _load_json_lines, ".csv": load_csv}
    if path.suffix not in readers:
        raise InvalidInputError(f"{path} is no trace: give a .npz, .jsonl or .csv file.")
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a file: give the path of a trace.")
    try:
        return readers[path.suffix](path, TraceSizes(num_experts, num_layers, top_k))
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not text ({error}): give a trace.") from error


def save_trace(trace: RoutingTrace, path: str | Path) -> None:
    """Writes a trace as .npz, .jsonl or .csv, by the suffix. A CSV has one row for each chosen expert."""
    path = Path(path)
    check_trace_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        columns = {name: getattr(trace, name) for name in _COLUMNS if getattr(trace, name) is not None}
        sizes = {"num_experts": np.array(trace.num_experts), "top_k": np.array(trace.top_k)}
        with path.open("wb") as file:
            np.savez_compressed(file, layer_names=np.array(trace.layer_names), **sizes, **columns)  # type: ignore[arg-type]
    elif path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as lines:
            lines.writelines(f"{json.dumps(entry, separators=(',', ':'))}\n" for entry in _json_lines(trace))
    else:
        with path.open("w", encoding="utf-8", newline="") as text:
            text.write(f"# layers={trace.num_layers} experts={trace.num_experts} top_k={trace.top_k}\n")
            writer = csv.writer(text)
            writer.writerow(["request", "phase", "step", "layer", "slot", "expert", "weight"])
            writer.writerows(csv_rows(trace))


def check_trace_suffix(path: Path) -> None:
    """InvalidInputError for a file that `save_trace` would not know how to write."""
    if path.suffix not in (".npz", ".jsonl", ".csv"):
        raise InvalidInputError(f"{path} has an unknown suffix: use .npz, .jsonl or .csv.")


_COLUMNS = ("layers", "phases", "requests", "offsets", "experts", "weights")


def _load_arrays(path: Path, sizes: TraceSizes) -> RoutingTrace:
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in _COLUMNS if name in file.files}
            facts = {name: file[name] for name in ("num_experts", "top_k", "layer_names")}
        num_experts, top_k, names = int(facts["num_experts"]), int(facts["top_k"]), tuple(facts["layer_names"].tolist())
        trace = RoutingTrace(num_experts, top_k, names, **columns)
    except (*DAMAGED, KeyError, TypeError) as error:
        reason = error or "it is empty"
        raise InvalidInputError(f"{path} is not a trace ({reason}): give a file that save_trace wrote.") from error
    sizes.agree(path, num_experts=num_experts, num_layers=trace.num_layers, top_k=top_k)
    return trace


def _json_lines(trace: RoutingTrace) -> Iterator[dict[str, Any]]:
    yield {"num_experts": trace.num_experts, "top_k": trace.top_k, "layer_names": list(trace.layer_names)}
    steps: dict[tuple[int, int], int] = {}
    for call in trace.calls():
        step = steps.get((call.request, call.layer), 0)
        steps[call.request, call.layer] = step + 1
        entry: dict[str, Any] = {
            "layer": call.layer,
            "phase": PHASES[call.phase],
            "request": call.request,
            "step": step,
            "expert_ids": call.expert_ids.tolist(),
        }
        if call.expert_weights is not None:
            # Shortest decimals that give the same float32 again.
            entry["expert_weights"] = [[float(str(w)) for w in row] for row in call.expert_weights]
        yield entry


def _load_json_lines(path: Path, sizes: TraceSizes) -> RoutingTrace:
    calls: list[Call] = []
    names: list[str] | None = None
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                if "layer" not in entry:
                    known = {key: int(entry[key]) for key in ("num_experts", "top_k") if key in entry}
                    if "num_experts" not in known:
                        raise KeyError("layer")
                    sizes.agree(path, **known)
                    names = entry.get("layer_names")
                    continue
                calls.append(_json_call(entry, sizes))
            except UnicodeDecodeError:
                raise
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise InvalidInputError(
                    f"{path}, line {number}: {error}. A line is an object with 'layer' and 'expert_ids' [T][k], "
                    "perhaps 'expert_weights', 'phase' (prefill or decode) and 'request'."
                ) from error
    return sizes.trace(calls, path, names)


def _json_call(entry: dict[str, Any], sizes: TraceSizes) -> Call:
    ids = np.array(next((entry[key] for key in _ID_KEYS if key in entry), 0))
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        raise InvalidInputError("there are no 'expert_ids' [T][k]")
    if ids.ndim == 1:
        ids = ids.reshape(-1, sizes.top_k or ids.size)
    layer, request = int(entry["layer"]), int(entry.get("request", entry.get("request_id", 0)))
    for name, value in (("layer", layer), ("request", request)):
        if not 0 <= value < 2**31:
            raise InvalidInputError(f"{name} is {value}, but must lie in [0, 2^31)")
    weights = next((np.array(entry[key], np.float32) for key in _WEIGHT_KEYS if entry.get(key) is not None), None)
    if weights is not None:
        if weights.size != ids.size:
            raise InvalidInputError(
                f"{weights.size} weights are given for {ids.size} experts: a trace has those of the chosen experts (of "
                "all, before top-k, MoERoutingProfiler.record_routing takes them)"
            )
        weights = weights.reshape(ids.shape)
    given = entry.get("phase")
    phase = phase_number(given) if given is not None else DECODE if len(ids) == 1 else PREFILL
    return Call(layer, as_int32("expert", ids), weights, phase, request)
