"""Traces as CSV, one row for each chosen expert: what other tools write."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.trace import DECODE, PHASES, PREFILL, Call, RoutingTrace, phase_number
from onnx_moe.routing.trace_sizes import TraceSizes

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


def csv_rows(trace: RoutingTrace) -> Iterator[list[Any]]:
    """A trace's choices, row by row: request, phase, step, layer, slot, expert, weight."""
    step_of_layer: dict[tuple[int, int], int] = {}
    for call in trace.calls():
        for row, ids in enumerate(call.expert_ids):
            step = step_of_layer.get((call.request, call.layer), 0)
            step_of_layer[call.request, call.layer] = step + 1
            for slot, expert in enumerate(ids):
                weight = "" if call.expert_weights is None else str(call.expert_weights[row, slot])
                yield [call.request, PHASES[call.phase], step, call.layer, slot, int(expert), weight]


def load_csv(path: Path, sizes: TraceSizes) -> RoutingTrace:
    """Reads one row for each chosen expert. Rows of one request, phase, step and layer are a token; without a step,
    top_k rows of a layer are one. Slots give the order of a token's experts. Without a phase, tokens of a layer that
    follow each other are a prompt, and single ones decode.
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


def _without_comments(lines: Iterable[str], sizes: TraceSizes) -> Iterator[str]:
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
        self.numbers = {name: array("q") for name in ("layer", "expert", "step", "request", "slot")}
        self.phases = array("b")
        self.weights = array("d")

    @property
    def has_steps(self) -> bool:
        return self._columns["step"] is not None

    @property
    def has_phases(self) -> bool:
        return self._columns["phase"] is not None

    @property
    def has_slots(self) -> bool:
        return self._columns["slot"] is not None

    def add(self, fields: list[str], line: int) -> None:
        if not fields:
            return
        try:
            for name, values in self.numbers.items():
                at = self._columns[name]
                value = 0 if at is None else int(fields[at])
                if value < 0 or (value >= 2**31 and name != "step"):
                    raise ValueError(f"{name} is {value}, but must lie in [0, 2^31)")
                values.append(value)
            phase = self._columns["phase"]
            self.phases.append(DECODE if phase is None else phase_number(fields[phase].strip().lower()))
            weight = self._columns["weight"]
            if weight is not None and fields[weight].strip():
                self.weights.append(float(fields[weight]))
            if 0 < len(self.weights) < len(self.phases):
                raise ValueError("there is no weight, but rows before have one: give them all, or none")
            if self.weights and not math.isfinite(self.weights[-1]):
                raise ValueError(f"weight is {self.weights[-1]}: give a number")
        except (ValueError, IndexError) as error:
            raise InvalidInputError(f"{self._path}, line {line}: {error} (in {','.join(fields)!r}).") from error


def _in_runs(layers: NDArray[Any], requests: NDArray[Any]) -> NDArray[Any]:
    """Whether a token stands beside another one of its layer and request. Where there is one layer, all do, and nothing
    tells prompts from decoding: then none is in a run.
    """
    if len(np.unique(layers)) == 1:
        return np.zeros(len(layers), bool)
    beside = (layers[1:] == layers[:-1]) & (requests[1:] == requests[:-1])
    result: NDArray[Any] = np.append(beside, False) | np.concatenate([[False], beside])
    return result


def _order_by_slot(columns: dict[str, NDArray[Any]], rows: _Rows, top_k: int, path: Path) -> None:
    """Puts the experts of each token into the order of their slots, best first."""
    slots = columns["slot"]
    if len(slots) % top_k:
        return  # reported with the sizes
    order = np.argsort(slots.reshape(-1, top_k), axis=1, kind="stable")
    in_order = np.take_along_axis(slots.reshape(-1, top_k), order, 1)
    wrong = np.flatnonzero((in_order != np.arange(top_k)).any(1))
    if wrong.size:
        token = int(wrong[0])
        found = slots.reshape(-1, top_k)[token].tolist()
        raise InvalidInputError(f"{path}: token {token} has the slots {found}, but they must be 0 to {top_k - 1}.")
    places = (order + top_k * np.arange(len(order))[:, None]).reshape(-1)
    columns["expert"] = columns["expert"][places]
    if len(rows.weights) == len(slots):
        rows.weights = array("d", np.array(rows.weights)[places].tolist())


def _trace_of_rows(rows: _Rows, sizes: TraceSizes, path: Path) -> RoutingTrace:
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
    if top_k is not None and rows.has_slots:
        _order_by_slot(columns, rows, top_k, path)
    if top_k is None:
        raise InvalidInputError(f"{path} has no column 'step', so that top_k is not known: give it.")
    if count % top_k:
        raise InvalidInputError(f"{path} has {count} rows, which are not whole tokens of {top_k} experts.")
    layers, requests, phases = columns["layer"][::top_k], columns["request"][::top_k], phases[::top_k]
    if not rows.has_phases:
        phases = np.where(_in_runs(layers, requests), PREFILL, DECODE)
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
