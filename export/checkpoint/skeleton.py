"""A model without its weights: built from the configuration, small enough for any machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from onnx_moe.errors import CheckpointError
from onnx_moe.export.adapters import find_adapter
from onnx_moe.export.layers import zero_experts
from onnx_moe.export.patching import replace_forward

#: Methods of quantization_config whose tensors `encodings` reads.
_KNOWN_QUANTIZATIONS = ("mxfp4", "modelopt", "compressed-tensors", "fp8")


def read_configuration(folder: Path) -> Any:
    """The configuration of the checkpoint in `folder`, without its quantisation: tensors say that themselves."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # transformers raises whatever is wrong with the values
        raise CheckpointError(
            f"{folder / 'config.json'} is no configuration that transformers reads: {_first_line(error)}. An "
            "architecture newer than the installed transformers needs a newer one."
        ) from error
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        facts = quantization if isinstance(quantization, dict) else quantization.to_dict()
        method = str(facts.get("quant_method", "")).lower()
        if method not in _KNOWN_QUANTIZATIONS:
            raise CheckpointError(
                f"The checkpoint is quantised by {method or 'an unnamed method'}, which this exporter does not read: "
                "use a checkpoint in bfloat16, float16 or float32, or one of the FP4 layouts of docs/checkpoints.md."
            )
        del config.quantization_config
    return config


def configuration_entries(config: Any) -> dict[str, Any]:
    """Every entry of a configuration, also by transformers' usual name where the architecture has its own (DBRX)."""
    usual = {name: getattr(config, name) for name in config.attribute_map if hasattr(config, name)}
    return {**config.to_dict(), **usual}


def build_model(config: Any, dtype: torch.dtype, attention: str | None) -> Any:
    """The causal language model of `config` with parameters on the meta device and real buffers.

    attention: "sdpa" or "eager"; None for the first of them that the architecture has.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention).eval()
    except Exception as error:
        raise CheckpointError(
            f"Architecture {config.model_type} cannot be built as a causal language model: {_first_line(error)}. It "
            "needs a class for AutoModelForCausalLM in the installed transformers."
        ) from error
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
    model.initialize_weights()  # computes the buffers; does nothing to parameters without values
    _keep_types(model, dtype)
    return model


def _keep_types(model: Any, dtype: torch.dtype) -> None:
    """Gives parameters the element type in which transformers keeps them whatever the model's own is: it searches their
    names for the patterns of the model's plan, such as "gate.weight".
    """
    from transformers.core_model_loading import build_glob_alternation

    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    if not plan:
        return
    patterns, pattern_of_group, _ = build_glob_alternation(list(plan))
    for name, parameter in model.named_parameters():
        found = patterns.search(name)
        if found is not None and found.lastgroup is not None:  # each pattern is a group
            parameter.data = parameter.data.to(plan[pattern_of_group[found.lastgroup]])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def make_fake(model: Any) -> FakeTensorMode:
    """Replaces parameters without values by fake ones, for a trace tensors on the CPU; returns their mode."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in fakes:
                with mode:
                    values = torch.empty(parameter.shape, dtype=parameter.dtype)
                fakes[id(parameter)] = torch.nn.Parameter(values, requires_grad=False)
            if parameter is not None:
                module._parameters[name] = fakes[id(parameter)]  # one for tied parameters
    return mode


@contextmanager
def without_experts(model: torch.nn.Module) -> Iterator[None]:
    """The experts give zeros inside the block: what they compute takes weights, and nobody asks for it yet."""

    with ExitStack() as stack:
        for module in model.modules():
            adapter = find_adapter(module)
            if adapter is not None:
                stack.enter_context(replace_forward(module, adapter(module).forward_with(zero_experts)))
        yield
