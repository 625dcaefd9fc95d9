"""Published MoE models and their true shapes: one table."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from onnx_moe.errors import InvalidInputError
from onnx_moe.formats import get_format


@dataclass(frozen=True)
class KnownModel:
    """A model's MoE layers. num_hidden_layers counts all layers, of which the first dense_layers have no experts.

    hidden_size, intermediate_size: of a routed expert, which is gated: three matrices [intermediate_size, hidden_size].
    top_k, num_experts: routed experts alone; num_shared_experts ride along. aliases: other names it is found under.
    """

    name: str
    num_hidden_layers: int
    dense_layers: int
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    num_shared_experts: int = 0
    aliases: tuple[str, ...] = ()

    @property
    def num_moe_layers(self) -> int:
        """Layers with experts."""
        return self.num_hidden_layers - self.dense_layers

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def routed_parameters(self) -> int:
        """Weights of all routed experts."""
        return self.num_moe_layers * self.num_experts * self.expert_parameters

    def expert_bytes(self, format: str = "mxfp4") -> int:
        """Bytes of one expert's codes and scales in an FP4 format with its own block size; biases (gpt-oss) and an
        expert's global scale (nvfp4), a few thousandths, are left out.
        """
        fmt = get_format(format)
        block = fmt.default_block_size
        blocks = 2 * self.intermediate_size * -(-self.hidden_size // block)  # gate and up
        blocks += self.hidden_size * -(-self.intermediate_size // block)  # down
        return self.expert_parameters // 2 + blocks * (1 if fmt.scale_type == "uint8" else 2)


#: From public files: config.json of zai-org/GLM-4.7 (GLM-4.5's shapes), mistral-community/Mixtral-8x22B,
#: Qwen/Qwen1.5-MoE-A2.7B and deepseek-ai's DeepSeek-V2, V3 and MoE-16B; the defaults of transformers' configurations
#: (glm4_moe_lite is GLM-4.7-Flash, glm4_moe GLM-4.5-Air, mixtral, qwen3_next, deepseek_v3, gpt_oss the 120b, olmoe);
#: the launch scripts of slime for GLM-4.5, Qwen3-30B, Qwen3-235B and Kimi-K2. Keys there: num_hidden_layers,
#: first_k_dense_replace, n_routed_experts or num_experts, num_experts_per_tok, hidden_size, moe_intermediate_size,
#: n_shared_experts. "glm47" is what the original of this simulator calls a model of 64 experts: the Flash.
KNOWN_MODELS: tuple[KnownModel, ...] = (
    KnownModel("glm-4.7-flash", 47, 1, 64, 4, 2048, 1536, 1, ("glm47-flash", "glm47")),
    KnownModel("glm-4.5", 92, 3, 160, 8, 5120, 1536, 1),
    KnownModel("glm-4.5-air", 46, 1, 128, 8, 4096, 1408, 1),
    KnownModel("glm-4.7", 92, 3, 160, 8, 5120, 1536, 1),
    KnownModel("mixtral-8x7b", 32, 0, 8, 2, 4096, 14336, 0, ("mixtral",)),
    KnownModel("mixtral-8x22b", 56, 0, 8, 2, 6144, 16384),
    KnownModel("qwen3-30b-a3b", 48, 0, 128, 8, 2048, 768, 0, ("qwen3_30b",)),
    KnownModel("qwen3-235b-a22b", 94, 0, 128, 8, 4096, 1536),
    KnownModel("qwen3-next-80b-a3b", 48, 0, 512, 10, 2048, 512, 1),
    KnownModel("qwen1.5-moe-a2.7b", 24, 0, 60, 4, 2048, 1408, 4),  # one shared expert, four times as wide
    KnownModel("deepseek-moe-16b", 28, 1, 64, 6, 2048, 1408, 2, ("deepseek_moe",)),
    KnownModel("deepseek-v2-lite", 27, 1, 64, 6, 2048, 1408, 2),
    KnownModel("deepseek-v2", 60, 1, 160, 6, 5120, 1536, 2),
    KnownModel("deepseek-v3", 61, 3, 256, 8, 7168, 2048, 1, ("deepseek-r1",)),
    KnownModel("gpt-oss-20b", 24, 0, 32, 4, 2880, 2880),
    KnownModel("gpt-oss-120b", 36, 0, 128, 4, 2880, 2880),
    KnownModel("kimi-k2", 61, 1, 384, 8, 7168, 2048, 1),
    KnownModel("olmoe-1b-7b", 16, 0, 64, 8, 2048, 1024),
)


def known_model(name: str) -> KnownModel:
    """The model of a name, whatever its case. Raises InvalidInputError with the likeliest names for an unknown one."""
    wanted = name.lower().rpartition("/")[2]
    by_name = {each: model for model in KNOWN_MODELS for each in (model.name, *model.aliases)}
    if wanted in by_name:
        return by_name[wanted]
    close = difflib.get_close_matches(wanted, by_name, n=3) or [model.name for model in KNOWN_MODELS]
    raise InvalidInputError(f"Unknown model {name!r}: use one of {', '.join(close)}.")
