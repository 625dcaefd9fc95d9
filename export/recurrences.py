"""Recurrent layers for a graph of any length: Torch's loops over tokens or chunks unroll at export, a Scan does not.

Each function computes what transformers' function of the same name does, token by token from a given state: the
recurrent form of the gated delta rule (Yang et al., Gated Delta Networks, 2024), its form with a decay for each
channel (Kimi Linear, 2025), and of selective state spaces (Gu and Dao, Mamba, 2023; Mamba 2, 2024).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch._higher_order_ops.scan import scan

from onnx_moe.export.patching import home_modules, replace_attribute, replace_forward

_Step = Callable[[torch.Tensor, Sequence[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]


def _over_tokens(
    step: _Step, state: torch.Tensor, inputs: Sequence[torch.Tensor], axis: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs `step` along `axis` of the inputs; the state after it, and the outputs stacked along the same axis."""
    state, outputs = scan(step, state, [tensor.movedim(axis, 0).contiguous() for tensor in inputs])
    return state, outputs.movedim(0, axis)


def _delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query, key [B, S, heads, K], value [B, S, heads, V], log decay [B, S, heads, 1 or K], beta [B, S, heads] and
    state [B, heads, K, V] → output [B, S, heads, V] and the state at its end, in float32.
    """

    def step(state: torch.Tensor, token: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value, decay, beta = token
        state = state * decay.exp().unsqueeze(-1)
        known = (key.unsqueeze(-2) @ state).squeeze(-2)
        correction = (value - known) * beta.unsqueeze(-1)
        state = state + key.unsqueeze(-1) * correction.unsqueeze(-2)
        return state, (query.unsqueeze(-2) @ state).squeeze(-2)

    query = query * query.shape[-1] ** -0.5
    state, output = _over_tokens(step, state.float(), (query, key, value, decay, beta), axis=1)
    return output, state


def _normalized(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * torch.rsqrt((tensor * tensor).sum(-1, keepdim=True) + 1e-6)


def gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    **_keywords: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For `torch_chunk_gated_delta_rule` and `chunk_kimi_delta_attention`: g [B, S, heads] or [B, S, heads, K]."""
    dtype, heads = query.dtype, value.shape[2]
    query, key = (tensor.repeat_interleave(heads // tensor.shape[2], dim=2) for tensor in (query, key))
    query, key, value, g, beta = (tensor.float() for tensor in (query, key, value, g, beta))
    if use_qk_l2norm_in_kernel:
        query, key = _normalized(query), _normalized(key)
    decay = g if g.ndim == 4 else g.unsqueeze(-1)
    output, state = _delta_rule(query, key, value, decay, beta, initial_state)
    return output.to(dtype), state


def mamba2_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    initial_states: torch.Tensor,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    **_keywords: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For `mamba2_chunk_scan`: x [B, S, heads, P], dt [B, S, heads], A, D [heads], B, C [B, S, groups, N]."""
    heads = hidden_states.shape[2]
    dt = dt + dt_bias.to(dt.dtype)
    dt = F.softplus(dt) if dt_softplus else dt
    # The step for a single token, which takes transformers' other function, is not limited from below.
    several = torch.ones_like(dt[0, :, 0]).sum() > 1
    dt = torch.maximum(dt, several * dt_limit[0]).clamp(max=dt_limit[1])
    hidden_states = hidden_states.float()
    B, C = (tensor.float().repeat_interleave(heads // tensor.shape[2], dim=2) for tensor in (B, C))
    decay = (A.float() * dt.float()).exp()

    def step(state: torch.Tensor, token: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        x, decay, b, c = token
        state = state * decay[..., None, None] + x.unsqueeze(-1) * b.unsqueeze(-2)
        return state, (state @ c.unsqueeze(-1)).squeeze(-1)

    inputs = (hidden_states * dt.float().unsqueeze(-1), decay, B, C)
    state, output = _over_tokens(step, initial_states.float(), inputs, axis=1)
    return output + D.unsqueeze(-1) * hidden_states, state


def mamba_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    z: torch.Tensor,
    delta_bias: torch.Tensor | None,
    initial_state: torch.Tensor,
    **_keywords: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For `mamba_selective_scan`: x, dt, z [B, channels, S], A [channels, N], B, C [B, N, S], D [channels]."""
    dtype = hidden_states.dtype
    dt = dt if delta_bias is None else dt + delta_bias.to(dt.dtype).unsqueeze(-1)
    dt = F.softplus(dt).float()

    def step(state: torch.Tensor, token: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        x, dt, b, c = token
        state = state * (A * dt.unsqueeze(-1)).exp() + (dt * x).unsqueeze(-1) * b.unsqueeze(-2)
        return state, (state @ c.unsqueeze(-1)).squeeze(-1)

    inputs = (hidden_states.float(), dt, B.float(), C.float())
    state, output = _over_tokens(step, initial_state.float(), inputs, axis=2)
    output = output.to(dtype) + hidden_states * D.unsqueeze(-1)
    return output * F.silu(z), state


def _lightning_attention(mixer: Any) -> Callable[..., Any]:
    """The forward of MiniMax-Text-01's linear attention (lightning attention, 2024): s = r s + k vᵀ, output q s."""

    def step(state: torch.Tensor, token: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = token
        state = state * (-mixer.slope_rate).exp() + key.unsqueeze(-1) * value.unsqueeze(-2)
        return state, (query.unsqueeze(-2) @ state).squeeze(-2)

    def forward(
        hidden_states: torch.Tensor, *_arguments: Any, attention_mask: torch.Tensor | None, cache: Any, **_keywords: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        products = mixer.act_fn(mixer.qkv_proj(hidden_states))
        if attention_mask is not None:  # of padding, which leaves no trace in the state
            products = products * attention_mask.unsqueeze(-1).to(products.dtype)
        tokens = products.unflatten(-1, (mixer.num_attention_heads, -1)).chunk(3, dim=-1)
        state, outputs = _over_tokens(step, cache.get_linear_cache(mixer.layer_idx), tokens, axis=1)
        cache.set_linear_cache(mixer.layer_idx, state)
        gate = mixer.output_gate(hidden_states).sigmoid()
        return mixer.out_proj(gate * mixer.norm(outputs.flatten(2))), state

    return forward


def _with_state(mixer: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """`mixer`'s forward with its layer's state for `mamba_selective_scan`, which is not given one."""
    own_forward = mixer.forward
    module = sys.modules[type(mixer).__module__]

    def forward(hidden_states: torch.Tensor, cache: Any = None, **keywords: Any) -> torch.Tensor:
        state = cache.get_recurrent_state(mixer.layer_idx)
        with replace_attribute(module, "mamba_selective_scan", _bind(function, state)):
            return own_forward(hidden_states, cache=cache, **keywords)  # type: ignore[no-any-return]

    return forward


def _bind(function: Callable[..., Any], state: torch.Tensor) -> Callable[..., Any]:
    return lambda *arguments, **keywords: function(*arguments, **keywords, initial_state=state)


#: Functions of transformers' modules, by name, that loop over tokens or chunks, and what takes their place.
_REPLACEMENTS: dict[str, Callable[..., Any]] = {
    "torch_chunk_gated_delta_rule": gated_delta_rule,
    "chunk_kimi_delta_attention": gated_delta_rule,
    "mamba2_chunk_scan": mamba2_scan,
}


@contextmanager
def exportable_recurrences(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block, recurrent layers of `model` run over a sequence of any length, from their cache's state."""
    with ExitStack() as stack:
        for module in home_modules(model):
            for name, replacement in _REPLACEMENTS.items():
                if hasattr(module, name):
                    stack.enter_context(replace_attribute(module, name, replacement))
        for child in model.modules():
            if hasattr(sys.modules[type(child).__module__], "mamba_selective_scan") and hasattr(child, "A_log"):
                stack.enter_context(replace_forward(child, _with_state(child, mamba_scan)))
            if type(child).__name__ == "MiniMaxLightningAttention":
                stack.enter_context(replace_forward(child, _lightning_attention(child)))
        yield
