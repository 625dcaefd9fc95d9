"""Traces in files: JSON lines, the CSV of other tools, and a compact form of our own."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.trace import DECODE, PHASES, PREFILL, Call, RoutingTrace, phase_number

_ID_KEYS = ("expert_ids", "topk_experts", "topk_ids", "experts")
_WEIGHT_KEYS = ("expert_weights", "topk_weights", "weights", "probs")

#: Columns of a CSV by meaning, in the names that tools give them.
_CSV_COLUMNS = {
    "layer": ("layer", "layer_idx", "layer_id"),
    "expert": ("expert", "expert_id"),
    "weight": ("weight", "gate", "prob"),
    "step": ("step", "token", "token_idx", "pos"),
    "slot": ("slot", "rank"),
    "phase": ("phase",),
    "request": ("request", "request_id", "turn"),
}


def load_trace(
    path: str | Path, *, num_experts: int | None = None, num_layers: int | None = None, top_k: int | None = None
) -> RoutingTrace:
    """Reads a trace by the file's suffix: .npz (`save_trace`), .jsonl or .csv (docs/routing.md has their forms).

    The sizes are needed where the file does not tell them: a CSV without a comment or columns that say them, and
    anything in which the last expert or layer never occurs. Raises InvalidInputError that names file and line.
    """
    path = Path(path)
    readers = {".npz": _load_arrays, ".jsonl": _load_json_lines, ".csv": _load_csv}
    if path.suffix not in readers:
        raise InvalidInputError(f"{path} is no trace: give a .npz, .jsonl or .csv file.")
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a file: give the path of a trace.")
    return readers[path.suffix](path, _Sizes(num_experts, num_layers, top_k))


def save_trace(trace: RoutingTrace, path: str | Path) -> None:
    """Writes a trace as .npz, .jsonl or .csv, by the suffix. A CSV has one row for each chosen expert."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        columns = {name: getattr(trace, name) for name in _COLUMNS if getattr(trace, name) is not None}
        sizes = {"num_experts": np.array(trace.num_experts), "top_k": np.array(trace.top_k)}
        with path.open("wb") as file:
            np.savez_compressed(file, layer_names=np.array(trace.layer_names), **sizes, **columns)  # type: ignore[arg-type]
    elif path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as lines:
            lines.writelines(f"{json.dumps(entry, separators=(',', ':'))}\n" for entry in _json_lines(trace))
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as text:
            text.write(f"# layers={trace.num_layers} experts={trace.num_experts} top_k={trace.top_k}\n")
            writer = csv.writer(text)
            writer.writerow(["request", "phase", "step", "layer", "slot", "expert", "weight"])
            writer.writerows(_csv_rows(trace))
    else:
        raise InvalidInputError(f"{path} has an unknown suffix: use .npz, .jsonl or .csv.")


_COLUMNS = ("layers", "phases", "requests", "offsets", "experts", "weights")


class _Sizes:
    """Sizes as the caller gave them, else as the file's header says, else as its numbers show."""

    def __init__(self, num_experts: int | None, num_layers: int | None, top_k: int | None) -> None:
        self.num_experts, self.num_layers, self.top_k = num_experts, num_layers, top_k

    def suggest(self, **sizes: int) -> None:
        """Takes over what is not known yet."""
        for name, value in sizes.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def trace(self, calls: list[Call], path: Path, names: list[str] | None = None) -> RoutingTrace:
        if not calls:
            raise InvalidInputError(f"{path} holds no routing.")
        layers = self.num_layers or 1 + max(call.layer for call in calls)
        experts = self.num_experts or 1 + max(int(call.expert_ids.max(initial=0)) for call in calls)
        try:
            return RoutingTrace.of_calls(calls, experts, names or layers)
        except InvalidInputError as error:
            raise InvalidInputError(f"{path}: {error}") from error


def _load_arrays(path: Path, sizes: _Sizes) -> RoutingTrace:
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in _COLUMNS if name in file.files}
            facts = {name: file[name] for name in ("num_experts", "top_k", "layer_names")}
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInputError(f"{path} is not a trace ({error}): give a file that save_trace wrote.") from error
    return RoutingTrace(int(facts["num_experts"]), int(facts["top_k"]), tuple(facts["layer_names"].tolist()), **columns)


def _json_lines(trace: RoutingTrace) -> Iterator[dict[str, Any]]:
    yield {"num_experts": trace.num_experts, "top_k": trace.top_k, "layer_names": list(trace.layer_names)}
    for call in range(trace.num_calls):
        part = slice(int(trace.offsets[call]), int(trace.offsets[call + 1]))
        entry: dict[str, Any] = {
            "layer": int(trace.layers[call]),
            "phase": PHASES[trace.phases[call]],
            "request": int(trace.requests[call]),
            "expert_ids": trace.experts[part].reshape(-1, trace.top_k).tolist(),
        }
        if trace.weights is not None:
            # Shortest decimals that give the same float32 again.
            entry["expert_weights"] = [
                [float(str(w)) for w in row] for row in trace.weights[part].reshape(-1, trace.top_k)
            ]
        yield entry


def _load_json_lines(path: Path, sizes: _Sizes) -> RoutingTrace:
    calls: list[Call] = []
    names: list[str] | None = None
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                if "layer" not in entry:
                    sizes.suggest(num_experts=entry["num_experts"])
                    names = entry.get("layer_names")
                    continue
                calls.append(_json_call(entry, sizes))
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInputError(
                    f"{path}, line {number}: {error}. A line is an object with 'layer' and 'expert_ids' [T][k], "
                    "perhaps 'expert_weights', 'phase' (prefill or decode) and 'request'."
                ) from error
    return sizes.trace(calls, path, names)


def _json_call(entry: dict[str, Any], sizes: _Sizes) -> Call:
    ids = np.array(next((entry[key] for key in _ID_KEYS if key in entry), 0))
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        raise InvalidInputError("there are no 'expert_ids' [T][k]")
    if ids.ndim == 1:
        ids = ids.reshape(-1, sizes.top_k or ids.size)
    weights = next((np.array(entry[key], np.float32) for key in _WEIGHT_KEYS if entry.get(key) is not None), None)
    if weights is not None and weights.size != ids.size:
        raise InvalidInputError(f"{weights.size} weights are given for {ids.size} experts")
    name = entry.get("phase")
    phase = phase_number(name) if name is not None else DECODE if len(ids) == 1 else PREFILL
    request = int(entry.get("request", entry.get("request_id", 0)))
    shaped = None if weights is None else weights.reshape(ids.shape)
    return Call(int(entry["layer"]), ids.astype(np.int32), shaped, phase, request)


def _csv_rows(trace: RoutingTrace) -> Iterator[list[Any]]:
    step_of_layer: dict[tuple[int, int], int] = {}
    for call in range(trace.num_calls):
        layer, request = int(trace.layers[call]), int(trace.requests[call])
        phase = PHASES[trace.phases[call]]
        begin = int(trace.offsets[call])
        for row in range(int(trace.tokens_of_calls[call])):
            step = step_of_layer.get((request, layer), 0)
            step_of_layer[request, layer] = step + 1
            for slot in range(trace.top_k):
                at = begin + row * trace.top_k + slot
                weight = "" if trace.weights is None else str(trace.weights[at])
                yield [request, phase, step, layer, slot, int(trace.experts[at]), weight]


def _load_csv(path: Path, sizes: _Sizes) -> RoutingTrace:
    """One row for each chosen expert. Rows of one request, phase, step and layer are a token; without a step, top_k
    rows of a layer are one.
    """
    with path.open(encoding="utf-8", newline="") as text:
        reader = csv.reader(_without_comments(text, sizes))
        header = [name.strip().lower() for name in next(reader, [])]
        columns = {
            meaning: next((header.index(name) for name in names if name in header), None)
            for meaning, names in _CSV_COLUMNS.items()
        }
        if columns["layer"] is None or columns["expert"] is None:
            raise InvalidInputError(
                f"{path} has the columns {header}: it needs 'layer' and 'expert', one row a choice."
            )
        rows = _Rows(path, columns)
        for fields in reader:
            rows.add(fields, reader.line_num)
    return _trace_of_rows(rows, sizes, path)


def _without_comments(lines: Iterable[str], sizes: _Sizes) -> Iterator[str]:
    names = {
        "num_experts": ("experts", "n_expert", "num_experts"),
        "num_layers": ("layers", "num_layers"),
        "top_k": ("top_k", "n_expert_used"),
    }
    for line in lines:
        if not line.startswith("#"):
            yield line
            continue
        facts = dict(word.split("=", 1) for word in line[1:].split() if word.count("=") == 1)
        for size, keys in names.items():
            value = next((facts[key] for key in keys if facts.get(key, "").isdigit()), None)
            if value is not None:
                sizes.suggest(**{size: int(value)})


class _Rows:
    """The columns of a CSV, read."""

    def __init__(self, path: Path, columns: dict[str, int | None]) -> None:
        self._path = path
        self._columns = columns
        self.numbers = {name: array("q") for name in ("layer", "expert", "step", "request")}
        self.phases = array("b")
        self.weights = array("d")

    @property
    def has_steps(self) -> bool:
        return self._columns["step"] is not None

    def add(self, fields: list[str], line: int) -> None:
        if not fields:
            return
        try:
            for name, values in self.numbers.items():
                at = self._columns[name]
                values.append(0 if at is None else int(fields[at]))
            phase = self._columns["phase"]
            self.phases.append(DECODE if phase is None else phase_number(fields[phase].strip().lower()))
            weight = self._columns["weight"]
            if weight is not None and fields[weight].strip():
                self.weights.append(float(fields[weight]))
        except (ValueError, IndexError) as error:
            raise InvalidInputError(f"{self._path}, line {line}: {error} (in {','.join(fields)!r}).") from error


def _trace_of_rows(rows: _Rows, sizes: _Sizes, path: Path) -> RoutingTrace:
    columns = {name: np.array(values, np.int64) for name, values in rows.numbers.items()}
    count = len(columns["layer"])
    if count == 0:
        raise InvalidInputError(f"{path} holds no routing.")
    phases = np.array(rows.phases)
    same = [columns[name][1:] == columns[name][:-1] for name in ("layer", "request", "step")] + [
        phases[1:] == phases[:-1]
    ]
    if rows.has_steps:
        begins = np.flatnonzero(np.concatenate([[True], ~np.logical_and.reduce(same)]))
        lengths = np.unique(np.diff(np.append(begins, count)))
        sizes.suggest(top_k=int(lengths[-1]))
        if (lengths != sizes.top_k).any():
            raise InvalidInputError(
                f"{path}: tokens choose {lengths.tolist()} experts, but all must choose {sizes.top_k}."
            )
    top_k = sizes.top_k
    if top_k is None:
        raise InvalidInputError(f"{path} has no column 'step', so that top_k is not known: give it.")
    if count % top_k:
        raise InvalidInputError(f"{path} has {count} rows, which are not whole tokens of {top_k} experts.")
    layers, requests, phases = columns["layer"][::top_k], columns["request"][::top_k], phases[::top_k]
    # Tokens of a layer that follow each other are one call.
    joined = (layers[1:] == layers[:-1]) & (requests[1:] == requests[:-1]) & (phases[1:] == phases[:-1])
    if rows.has_steps:
        joined &= phases[1:] == PREFILL
    begins = np.flatnonzero(np.concatenate([[True], ~joined]))
    used = np.unique(layers)
    given = sizes.num_layers is not None and sizes.num_layers > used[-1]
    number = {int(layer): int(layer) if given else index for index, layer in enumerate(used)}
    names = None if given else [str(layer) for layer in used]
    ids = columns["expert"].reshape(-1, top_k).astype(np.int32)
    weights = np.array(rows.weights, np.float32).reshape(-1, top_k) if len(rows.weights) == count else None
    calls = [
        Call(
            number[int(layers[first])],
            ids[first:last],
            None if weights is None else weights[first:last],
            int(phases[first]),
            int(requests[first]),
        )
        for first, last in zip(begins, np.append(begins[1:], len(layers)), strict=True)
    ]
    return sizes.trace(calls, path, names)
