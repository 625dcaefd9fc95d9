"""The cases: settings of both operators, combined so that every pair of two settings' values occurs."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class GemmCase:
    """One use of MoEExpertGemmFP4. The default is the plainest; a test id names what differs from it."""

    dtype: str = "float32"
    format: str = "mxfp4"
    block_size: int = 0
    tokens: tuple[int, ...] = (7,)
    slots: int = 2
    num_experts: int = 8
    rows: int = 33
    blocks: int = 2
    activation: str = "none"
    gated: bool = False
    interleaved: bool = False
    alpha: float = 1.0
    beta: float = 0.0
    limit: float = 0.0
    x_per_slot: bool = False
    global_scale: str = "absent"
    bias: str = "absent"
    combine: bool = False
    ids: str = "random"
    weights: str = "random"
    all_inputs: bool = False
    accuracy_level: int = 0
    weight_layout: str = "rows"

    @property
    def columns(self) -> int:
        return self.blocks * self.resolved_block_size

    @property
    def output_rows(self) -> int:
        return self.rows // 2 if self.gated else self.rows

    @property
    def resolved_block_size(self) -> int:
        return self.block_size or {"mxfp4": 32, "nvfp4": 16, "fp4": 128}[self.format]

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that differ from their defaults."""
        attributes: dict[str, Any] = {"format": self.format}
        if self.block_size:
            attributes["block_size"] = self.block_size
        if self.activation != "none":
            attributes["activation"] = self.activation
        if self.gated:
            attributes["gated"] = 1
        if self.interleaved:
            attributes["gate_layout"] = "interleaved"
        for name, neutral in (("alpha", 1.0), ("beta", 0.0), ("limit", 0.0)):
            if getattr(self, name) != neutral:
                attributes[name] = getattr(self, name)
        if self.accuracy_level:
            attributes["accuracy_level"] = self.accuracy_level
        if self.weight_layout != "rows":
            attributes["weight_layout"] = self.weight_layout
        return attributes


@dataclass(frozen=True)
class RouterCase:
    """One use of MoERouter."""

    dtype: str = "float32"
    tokens: tuple[int, ...] = (7,)
    hidden_size: int = 32
    num_experts: int = 8
    top_k: int = 2
    scoring: str = "softmax"
    normalize: bool = False
    norm_epsilon: float = 0.0
    norm_min: float = 0.0
    scaling_factor: float = 1.0
    num_groups: int = 1
    top_k_groups: int = 1
    group_scoring: str = "max"
    num_shared_experts: int = 0
    gate: str = "same"
    gate_bias: bool = False
    correction_bias: bool = False
    next_gate: str = "absent"
    values: str = "random"

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that differ from their defaults."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = asdict(RouterCase())
        tensors = {
            "dtype",
            "tokens",
            "hidden_size",
            "num_experts",
            "gate",
            "gate_bias",
            "correction_bias",
            "next_gate",
            "values",
        }
        attributes = {
            name: int(value) if isinstance(value, bool) else value
            for name, value in given.items()
            if name not in tensors and value != defaults[name]
        }
        return {"top_k": self.top_k, **attributes}


Case = GemmCase | RouterCase


def case_id(case: Case) -> str:
    """The settings that differ from the default case, for a test's name."""
    default = type(case)()
    parts = []
    for field in fields(case):
        value = getattr(case, field.name)
        if value != getattr(default, field.name):
            text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(text if isinstance(value, str) else f"{field.name}={text}")
    return "-".join(parts) or "default"


def case_seed(case: Case) -> int:
    """A seed for the case's data: its own, and the same in every process."""
    return zlib.crc32(repr(case).encode())


def pairwise(settings: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Combinations of the settings' values such that every pair of values of two settings occurs.

    Greedy: each combination starts from a missing pair and takes the values that add most pairs.
    """
    choose = random.Random(0)
    names = list(settings)
    indices = {name: index for index, name in enumerate(names)}
    missing = {
        ((first, a), (second, b))
        for first, second in itertools.combinations(names, 2)
        for a, b in itertools.product(range(len(settings[first])), range(len(settings[second])))
    }

    def gain(picked: Mapping[str, int], name: str, value: int) -> int:
        pairs = (sorted(((name, value), other), key=lambda entry: indices[entry[0]]) for other in picked.items())
        return sum(tuple(pair) in missing for pair in pairs)

    combinations = []
    for pair in sorted(missing):
        if pair not in missing:
            continue
        picked = dict(pair)
        for name in choose.sample(names, len(names)):
            if name not in picked:
                values = choose.sample(range(len(settings[name])), len(settings[name]))
                picked[name] = max(values, key=lambda value: gain(picked, name, value))
        missing -= set(itertools.combinations(((name, picked[name]) for name in names), 2))
        combinations.append({name: settings[name][picked[name]] for name in names})
    return combinations


_SILU_CLAMPED = {"activation": "silu", "gated": True, "alpha": 1.702, "beta": 1.0, "limit": 2.0}

#: What happens to the products.
EPILOGUES: list[dict[str, Any]] = [
    *({"activation": name} for name in ("none", "silu", "gelu", "gelu_tanh", "relu", "relu2")),
    {"activation": "silu", "alpha": 1.702},
    *(
        {"activation": name, "gated": True, "interleaved": interleaved}
        for name, interleaved in itertools.product(("none", "silu", "gelu", "gelu_tanh", "relu", "relu2"), (0, 1))
    ),
    _SILU_CLAMPED,
    {**_SILU_CLAMPED, "interleaved": True},
    {"activation": "none", "gated": True, "limit": 1.0},
]

_GEMM_SETTINGS: dict[str, Sequence[Any]] = {
    "epilogue": EPILOGUES,
    "format": [("mxfp4", 0), ("nvfp4", 0), ("fp4", 0), ("fp4", 32), ("fp4", 64)],
    "tokens": [(0,), (1,), (2,), (7,), (64,), (513,), (2, 3), (0, 4)],
    "num_experts": [1, 8, 64, 128, 256],
    "slots": [1, 2, 4, 8],
    "rows": [1, 2, 34, 35, 96],
    "blocks": [1, 2, 3, 5],
    "ids": ["random", "repeated", "idle", "single"],
    "dtype": ["float32", "float16", "bfloat16"],
    "global_scale": ["absent", "expert", "halves"],
    "bias": ["absent", "float", "same"],
    "x_per_slot": [False, True],
    "combine": [False, True],
    "all_inputs": [False, True],
    "accuracy_level": [0, 2, 4],
    "weight_layout": ["rows", "interleaved"],
}


def _gemm_case(settings: Mapping[str, Any]) -> GemmCase:
    """The case of the settings, where they contradict each other the nearest legal one."""
    chosen = {name: value for name, value in settings.items() if name not in ("epilogue", "format")}
    chosen["format"], chosen["block_size"] = settings["format"]
    case = GemmCase(**chosen, **settings["epilogue"])
    if case.gated and case.rows % 2:
        case = replace(case, rows=case.rows + 1)
    if not case.gated and case.global_scale == "halves":
        case = replace(case, global_scale="expert")
    if case.weight_layout == "interleaved":
        multiple = 32 if case.gated else 16
        case = replace(case, rows=-(-case.rows // multiple) * multiple, interleaved=False)
    if case.format == "fp4" and case.block_size != 32:
        case = replace(case, blocks=min(case.blocks, 2))
    return case


#: Weights of which a scale or a code is special; see data.draw_weights.
SPECIAL_WEIGHTS = {
    "mxfp4": ("scale_zero", "scale_nan", "scale_range", "codes_zero"),
    "nvfp4": ("scale_zero", "scale_nan", "scale_negative", "scale_subnormal", "scale_all", "codes_zero"),
    "fp4": ("scale_zero", "scale_nan", "scale_negative", "scale_subnormal", "codes_zero"),
}

_SPECIAL_GEMM_CASES = [
    GemmCase(
        format=format,
        weights=weights,
        dtype=dtype,
        rows=34,
        gated=gated,
        activation="silu" if gated else "none",
    )
    for format, kinds in SPECIAL_WEIGHTS.items()
    for weights, (dtype, gated) in itertools.product(kinds, (("float32", False), ("bfloat16", True)))
]

#: Sizes of real blocks' order, so that long sums and large tiles occur; and long sums with a tail. Terms of one sign
#: make a sum's rounding errors add up where it is not cut in parts.
_LARGE_GEMM_CASES = [
    *(
        GemmCase(
            rows=32, blocks=448, tokens=(tokens,), slots=1, num_experts=1, weights="positive", weight_layout=layout
        )
        for tokens in (1, 6, 13, 32)
        for layout in ("rows", "interleaved")
    ),
    *(
        GemmCase(rows=64, blocks=7, tokens=(80,), slots=1, weights="blocks_zero", weight_layout=layout, num_experts=2)
        for layout in ("rows", "interleaved")
    ),
    GemmCase(rows=130, blocks=64, tokens=(5,), slots=4, num_experts=4),
    GemmCase(rows=70, blocks=129, tokens=(3,), format="nvfp4", global_scale="expert"),
    GemmCase(rows=64, blocks=9, tokens=(40,), format="fp4", dtype="float16", combine=True),
    GemmCase(rows=512, blocks=5, tokens=(70,), num_experts=4, gated=True, activation="silu", dtype="bfloat16"),
    *(
        GemmCase(
            rows=rows, blocks=blocks, tokens=(tokens,), slots=1, num_experts=2, format=format, accuracy_level=level
        )
        for level in (0, 1, 2, 3, 4)
        for format, blocks in (("mxfp4", 37), ("nvfp4", 67), ("fp4", 9))
        for rows, tokens in ((70, 3), (34, 9), (300, 300))
    ),
    # Few rows and many of an expert, tiles that end within a panel, blocks that end within a unit.
    *(
        GemmCase(
            rows=rows,
            blocks=blocks,
            tokens=(tokens,),
            slots=1,
            num_experts=2,
            format=format,
            gated=gated,
            activation="silu" if gated else "none",
            accuracy_level=level,
            weight_layout="interleaved",
        )
        for level in (0, 2, 4)
        for format, blocks in (("mxfp4", 37), ("nvfp4", 67), ("fp4", 9))
        for rows, tokens, gated in ((80, 3, False), (352, 19, True), (48, 40, False), (544, 300, True))
    ),
    *(
        GemmCase(weights=kind, format=format, weight_layout="interleaved", rows=48, tokens=(tokens,), num_experts=2)
        for format, kinds in SPECIAL_WEIGHTS.items()
        for kind in kinds
        for tokens in (7, 60)
    ),
]

GEMM_CASES: list[GemmCase] = [
    *dict.fromkeys(_gemm_case(settings) for settings in pairwise(_GEMM_SETTINGS)),
    *_SPECIAL_GEMM_CASES,
    *_LARGE_GEMM_CASES,
    *(
        GemmCase(weights="scale_nan", rows=34, gated=True, limit=1.0, activation=activation, combine=True)
        for activation in ("gelu", "gelu_tanh", "relu", "relu2")
    ),
    GemmCase(tokens=(), slots=3),
    GemmCase(tokens=(), slots=3, combine=True, x_per_slot=True, rows=34, gated=True),
    GemmCase(weights="x_nan", dtype="float32"),
    *(GemmCase(weights="x_nan", tokens=(20,), num_experts=2, accuracy_level=level) for level in (0, 2, 4)),
    # One value dwarfs the others of its block: what rounding to shared scales costs most.
    *(
        GemmCase(weights="x_spiky", tokens=(tokens,), num_experts=2, blocks=4, accuracy_level=level)
        for level in (0, 2, 4)
        for tokens in (1, 20)
    ),
    GemmCase(weights="x_nan", dtype="float16", combine=True, gated=True, rows=34, activation="silu", limit=1.0),
]

_NORMALISATIONS = [
    {},
    {"normalize": True},
    {"normalize": True, "norm_epsilon": 1e-20, "scaling_factor": 2.5},
    {"normalize": True, "norm_epsilon": 0.5},
    {"normalize": True, "norm_min": 0.75, "scaling_factor": 0.5},
    {"scaling_factor": 6.0},
]

_GROUPS = [
    {},
    {"num_groups": 2},
    {"num_groups": 4, "top_k_groups": 2},
    {"num_groups": 4, "top_k_groups": 2, "group_scoring": "top2_sum"},
    {"num_groups": 2, "top_k_groups": 2, "group_scoring": "top2_sum"},
    {"num_groups": 8, "top_k_groups": 3, "group_scoring": "max"},
]

_ROUTER_SETTINGS: dict[str, Sequence[Any]] = {
    "scoring": ["softmax", "sigmoid", "sqrt_softplus", "softmax_after_topk", "sigmoid_after_topk"],
    "normalisation": _NORMALISATIONS,
    "groups": _GROUPS,
    "values": ["random", "ties", "equal", "nan", "infinite", "masked", "large", "negative"],
    "tokens": [(0,), (1,), (7,), (64,), (513,), (2, 3), (2, 0)],
    "num_experts": [8, 16, 64, 128, 256],
    "top_k": [1, 2, 4, 8],
    "num_shared_experts": [0, 1, 2],
    "gate": ["absent", "same", "float"],
    "dtype": ["float32", "float16", "bfloat16"],
    "gate_bias": [False, True],
    "correction_bias": [False, True],
    "hidden_size": [1, 33, 64],
}


def _router_case(settings: Mapping[str, Any]) -> RouterCase:
    chosen = {name: value for name, value in settings.items() if name not in ("normalisation", "groups")}
    case = RouterCase(**chosen, **settings["normalisation"], **settings["groups"])
    candidates = case.num_experts // case.num_groups * case.top_k_groups
    if case.num_groups > 1 and case.group_scoring == "top2_sum" and case.num_experts == case.num_groups:
        case = replace(case, num_experts=2 * case.num_experts)
    return replace(case, top_k=min(case.top_k, candidates))


ROUTER_CASES: list[RouterCase] = [
    *dict.fromkeys(_router_case(settings) for settings in pairwise(_ROUTER_SETTINGS)),
    *(
        RouterCase(num_experts=16, gate="absent", scoring=scoring, values="negative", correction_bias=True)
        for scoring in ("softmax", "sigmoid", "sqrt_softplus", "softmax_after_topk", "sigmoid_after_topk")
    ),
    # Groups whose best two are +inf and -inf: their sum is no number.
    *(
        RouterCase(
            tokens=(64,),
            top_k=top_k,
            gate="absent",
            values="opposites",
            scoring=scoring,
            num_groups=4,
            top_k_groups=groups,
            group_scoring="top2_sum",
        )
        for scoring in ("softmax_after_topk", "sigmoid_after_topk", "sigmoid")
        for top_k, groups in ((2, 1), (2, 2), (4, 3))
    ),
    RouterCase(num_experts=1, top_k=1),
    RouterCase(tokens=(), gate="float", num_shared_experts=1),
    RouterCase(tokens=(), gate="absent", num_groups=4, top_k_groups=2),
    RouterCase(num_experts=3, top_k=3, scoring="sigmoid", normalize=True),
    RouterCase(num_experts=256, top_k=256, tokens=(3,)),
    RouterCase(num_experts=8, top_k=8, hidden_size=257, gate="float", dtype="bfloat16"),
    RouterCase(next_gate="same", num_shared_experts=1),
    RouterCase(next_gate="float", dtype="float16", tokens=(2, 3), gate_bias=True, correction_bias=True),
    RouterCase(next_gate="same", dtype="bfloat16", tokens=(0,)),
]
