"""The routing of an exported decoder on text: prompts, then the text's own next tokens one at a time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError
from onnx_moe.operators import DOMAIN
from onnx_moe.routing.counters import profile_recording
from onnx_moe.routing.profile import RoutingProfile
from onnx_moe.routing.recording import Recording, record
from onnx_moe.routing.trace import DECODE, PHASES, PREFILL
from onnx_moe.session import InferenceSession

logger = logging.getLogger(__name__)

#: Expert ids that a run records at the most: 1 GiB with their weights.
TRACE_LIMIT = 2**27

#: Inputs of the operators that hold an expert's weights.
_EXPERT_INPUTS = {"MoEExpertGemmFP4": (2, 3), "MoEBlockFP4": (4, 5, 8, 9)}


@dataclass(frozen=True)
class Requests:
    """How texts become requests: each is cut into pieces of prompt_tokens + decoded_tokens, at most `most`."""

    prompt_tokens: int = 128
    decoded_tokens: int = 128
    most: int = 8

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "decoded_tokens", "most"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}, but must be at least 1.")

    def of(self, tokens: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Pieces of a text [tokens], spread evenly over it; the whole text where it is shorter than one piece."""
        size = self.prompt_tokens + self.decoded_tokens
        pieces = min(max(len(tokens) // size, 1), self.most)
        starts = np.linspace(0, max(len(tokens) - size, 0), pieces).astype(int)
        return [tokens[start : start + size] for start in starts]


def profile_text(
    model: str | Path,
    texts: Sequence[tuple[str, NDArray[np.int64]]],
    requests: Requests | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> RoutingProfile:
    """Runs an exported decoder on texts (name, token ids) and profiles the routing.

    model: as `onnx_moe.export` writes a causal language model. The tokens after each prompt are the text's own, fed one
    by one through the KV cache. Raises InvalidInputError for a model of another form, or without routers.
    """
    from onnx_moe.generation import DecoderSession

    if not texts:
        raise InvalidInputError("there is no text to run: give at least one.")
    path = Path(model)
    session = _session(path)
    nodes = _expert_nodes(path)
    named = [(name, piece) for name, tokens in texts for piece in (requests or Requests()).of(tokens)]
    pieces = [piece for _, piece in named]
    prompt_tokens = (requests or Requests()).prompt_tokens
    decoder = DecoderSession(session)
    with record(session) as recording:
        for number, piece in enumerate(pieces):
            _run(decoder, recording, piece, prompt_tokens, number)
            if progress is not None:
                progress("running", (number + 1) / len(pieces))
    if recording.dropped_calls:
        logger.warning("%d calls are not in the trace, which was full.", recording.dropped_calls)
    return profile_recording(
        recording,
        name=path.stem,
        expert_bytes=_expert_bytes(nodes, recording.trace.num_layers),
        source=", ".join(name for name, _ in texts),
        facts=_facts(path, nodes),
        class_of_request={number: name for number, (name, _) in enumerate(named)},
    )


def _session(path: Path) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a file: give the path of an .onnx model.")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("onnx_moe.trace", "full")
    options.add_session_config_entry("onnx_moe.trace_limit", str(TRACE_LIMIT))
    session = InferenceSession(path, options)
    names = {value.name for value in session.get_inputs()}
    if not {"input_ids", "attention_mask"} <= names:
        raise InvalidInputError(
            f"{path} has the inputs {sorted(names)}, but a decoder's are input_ids, attention_mask and "
            "past_key_values: export a causal language model, or record your own runs with onnx_moe.routing.record."
        )
    return session


def _run(decoder: Any, recording: Recording, tokens: NDArray[np.int64], prompt_tokens: int, request: int) -> None:
    """The prompt in one call, the other tokens in one call each."""
    cache = decoder.empty_cache(1)
    ends = [min(prompt_tokens, len(tokens)), *range(min(prompt_tokens, len(tokens)) + 1, len(tokens) + 1)]
    begin = 0
    for end in ends:
        recording.label(phase=PHASES[DECODE if begin else PREFILL], request=request)
        _, cache = decoder.step(tokens[None, begin:end], np.ones((1, end), np.int64), cache)
        begin = end


def _expert_nodes(model: Path) -> list[ir.Node]:
    """The model's own nodes that hold experts. Weights beside it are not read."""
    graph = ir.from_proto(onnx.load(model, load_external_data=False)).graph
    nodes = ir.traversal.RecursiveGraphIterator(graph)
    return [node for node in nodes if node.domain == DOMAIN and node.op_type in _EXPERT_INPUTS]


def _facts(model: Path, nodes: Sequence[ir.Node]) -> dict[str, str]:
    """What tells a model file from others: a hash of the graph (not of weights beside it), and the experts' format."""
    formats = sorted({node.attributes.get_string("format", "") for node in nodes} - {""})
    return {
        "graph SHA-256": hashlib.sha256(model.read_bytes()).hexdigest()[:16],
        "experts’ format": ", ".join(formats),
    }


def _expert_bytes(nodes: Sequence[ir.Node], num_layers: int) -> int | None:
    """Bytes of one expert, a mean over layers; None where weights have no constant shape."""
    total = 0.0
    for node in nodes:
        for index in _EXPERT_INPUTS[node.op_type]:
            value = node.inputs[index]
            if value is None or value.const_value is None:
                return None
            total += value.const_value.nbytes / int(value.const_value.shape.numpy()[0])
    return round(total / num_layers) or None
