"""Blocks of transformers whose experts follow no convention: adapters, against the blocks themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .test_custom_modules import export_and_compare


def llama4() -> torch.nn.Module:
    from transformers.models.llama4.configuration_llama4 import Llama4TextConfig
    from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

    return Llama4TextMoe(
        Llama4TextConfig(hidden_size=64, intermediate_size=32, num_local_experts=8, num_experts_per_tok=2)
    )


def dbrx() -> torch.nn.Module:
    from transformers.models.dbrx.configuration_dbrx import DbrxConfig
    from transformers.models.dbrx.modeling_dbrx import DbrxFFN

    experts = {"hidden_size": 64, "ffn_hidden_size": 32, "moe_num_experts": 8, "moe_top_k": 2}
    return DbrxFFN(DbrxConfig(d_model=64, ffn_config=experts))


def jetmoe() -> torch.nn.Module:
    from transformers.models.jetmoe.configuration_jetmoe import JetMoeConfig
    from transformers.models.jetmoe.modeling_jetmoe import JetMoeMoE

    return JetMoeMoE(JetMoeConfig(hidden_size=64, intermediate_size=32, num_local_experts=8, num_experts_per_tok=2))


def longcat() -> torch.nn.Module:
    from transformers.models.longcat_flash.configuration_longcat_flash import LongcatFlashConfig
    from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMoE

    sizes: dict[str, Any] = {"hidden_size": 64, "expert_ffn_hidden_size": 32, "n_routed_experts": 8}
    return LongcatFlashMoE(LongcatFlashConfig(**sizes, zero_expert_num=4, moe_topk=3))


class Block(torch.nn.Module):
    """x [B, S, H] → the block's output in the same shape."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.block(x)
        output = output[0] if isinstance(output, tuple) else output
        return output.view(x.shape)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "router"),
    [
        (llama4, "sigmoid after top-k"),
        (dbrx, "ordinary ops"),
        (jetmoe, "softmax after top-k"),
        (longcat, "softmax"),
    ],
)
def test_block(make: Callable[[], torch.nn.Module], router: str, tmp_path: Path) -> None:
    block = make().eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in (*block.parameters(), *block.buffers()):
        if tensor.is_floating_point():
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.15)
    report = export_and_compare(Block(block), tmp_path / "model.onnx")
    (layer,) = report.layers
    assert (layer.num_experts, layer.hidden_size, layer.intermediate_size) == (8, 64, 32)
    assert layer.router.startswith(router)
