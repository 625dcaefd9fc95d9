"""torch.ops.onnx_moe: signatures, fake implementations, export; and the package's facts about the formats."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

import onnx_moe.reference
from onnx_moe import formats
from onnx_moe.operators import DOMAIN, ROUTER, load_operators, register_schemas, router_attributes

ROUTER_SCHEMA = (
    "onnx_moe::router(Tensor hidden_states, Tensor? gate_weight, Tensor? gate_bias, Tensor? correction_bias, "
    'Tensor? next_gate_weight, *, int top_k, str scoring="softmax", int normalize=0, float norm_epsilon=0., '
    "float norm_min=0., float scaling_factor=1., int num_groups=1, int top_k_groups=1, "
    'str group_scoring="max", int num_shared_experts=0) -> (Tensor, Tensor, Tensor)'
)
EXPERT_GEMM_SCHEMA = (
    "onnx_moe::expert_gemm_fp4(Tensor x, Tensor expert_ids, Tensor weights, Tensor scales, Tensor? global_scale, "
    'Tensor? bias, Tensor? expert_weights, *, str format="mxfp4", int block_size=0, str weight_layout="rows", '
    'str activation="none", int gated=0, str gate_layout="concatenated", float alpha=1., float beta=0., '
    "float limit=0., int accuracy_level=0) -> Tensor"
)

NUM_EXPERTS, ROWS, COLUMNS = 6, 10, 64


def block_inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """hidden states [2, 3, K], a gate, and weights for the experts and one shared expert."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 3, COLUMNS, generator=generator).to(dtype),
        torch.randn(NUM_EXPERTS, COLUMNS, generator=generator),
        torch.randint(0, 256, (NUM_EXPERTS + 1, ROWS, COLUMNS // 2), generator=generator, dtype=torch.uint8),
        torch.randint(118, 124, (NUM_EXPERTS + 1, ROWS, COLUMNS // 32), generator=generator, dtype=torch.uint8),
    )


class Block(torch.nn.Module):
    def forward(
        self, hidden: torch.Tensor, gate: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        rows = hidden.reshape(-1, COLUMNS)
        ids, expert_weights, _ = torch.ops.onnx_moe.router(rows, gate, None, None, None, top_k=2, num_shared_experts=1)
        y = torch.ops.onnx_moe.expert_gemm_fp4(
            rows, ids, weights, scales, None, None, expert_weights, gated=1, activation="silu"
        )
        return y.reshape(*hidden.shape[:-1], ROWS // 2)


def test_signatures() -> None:
    assert str(torch.ops.onnx_moe.router.default._schema) == ROUTER_SCHEMA
    assert str(torch.ops.onnx_moe.expert_gemm_fp4.default._schema) == EXPERT_GEMM_SCHEMA


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fake_implementations_agree_with_the_real_ones(dtype: torch.dtype) -> None:
    hidden, gate, weights, scales = block_inputs(dtype)
    router = torch.ops.onnx_moe.router.default
    for arguments in (
        (hidden, gate, None, None, gate[:2]),
        (hidden[..., :8], None, torch.ones(8), torch.zeros(8), None),
    ):
        torch.library.opcheck(router, arguments, {"top_k": 2, "num_shared_experts": 1})
    ids, expert_weights, _ = router(hidden, gate, None, None, None, top_k=2)
    gemm = torch.ops.onnx_moe.expert_gemm_fp4.default
    bias, per_slot = torch.ones(NUM_EXPERTS + 1, ROWS), hidden.unsqueeze(-2).repeat(1, 1, 2, 1)
    for x, combine, attributes in (
        (hidden, None, {}),
        (hidden, expert_weights, {"gated": 1}),
        (per_slot, None, {"gated": 1, "gate_layout": "interleaved"}),
        (per_slot, expert_weights, {}),
    ):
        torch.library.opcheck(gemm, (x, ids, weights, scales, None, bias, combine), attributes)


def test_export_with_dynamic_batch_and_sequence() -> None:
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    inputs = block_inputs()
    dynamic_shapes = ({0: batch, 1: sequence}, None, None, None)
    program = torch.export.export(Block(), inputs, dynamic_shapes=dynamic_shapes)
    other = torch.randn(5, 7, COLUMNS)
    assert torch.equal(program.module()(other, *inputs[1:]), Block()(other, *inputs[1:]))


def test_compile_without_graph_breaks() -> None:
    inputs = block_inputs()
    compiled = torch.compile(Block(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), Block()(*inputs))


def test_no_rows() -> None:
    inputs = block_inputs()
    assert Block()(inputs[0][:0], *inputs[1:]).shape == (0, 3, ROWS // 2)


def test_float64_path_is_exact_beyond_float32() -> None:
    """The reference can evaluate in float64, as the yardstick of other tests does."""
    hidden, gate, weights, scales = block_inputs()
    ids, _, _ = onnx_moe.reference.router(hidden, gate, top_k=2, compute_dtype=torch.float64)
    y = onnx_moe.reference.expert_gemm(hidden, ids, weights, scales, compute_dtype=torch.float64)
    decoded = onnx_moe.reference.decode_weights(weights, scales, "mxfp4", dtype=torch.float64)
    expected = torch.einsum("bsk,bsonk->bson", hidden.double(), decoded[ids.long()])
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (formats.E2M1_VALUES, ml_dtypes.float4_e2m1fn),
        (formats.E8M0_VALUES, ml_dtypes.float8_e8m0fnu),
        (formats.E4M3_VALUES, ml_dtypes.float8_e4m3fn),
    ],
)
def test_every_code_has_the_value_of_ml_dtypes(values: tuple[float, ...], dtype: type) -> None:
    expected = np.arange(len(values), dtype=np.uint8).view(dtype).astype(np.float64)
    np.testing.assert_array_equal(values, expected)
    numbers = ~np.isnan(expected)  # a NaN has no sign that means anything
    np.testing.assert_array_equal(np.signbit(values)[numbers], np.signbit(expected)[numbers])


def test_schemas_are_registered_once() -> None:
    register_schemas()
    register_schemas()
    for definition in load_operators().values():
        schema = onnx.defs.get_schema(definition.name, 1, DOMAIN)
        assert [value.name for value in schema.inputs] == [value.name for value in definition.inputs]
        assert set(schema.attributes) == {attribute.name for attribute in definition.attributes}
        required = [index for index, value in enumerate(definition.inputs) if not value.optional]
        assert schema.min_input == max(required) + 1
    assert onnx.defs.get_schema(ROUTER, 1, DOMAIN).attributes["top_k"].required


def test_numbers_of_numpy_are_numbers() -> None:
    attributes = router_attributes({"top_k": np.int64(3), "scaling_factor": np.float32(2.5), "normalize": True})
    assert (attributes.top_k, attributes.scaling_factor, attributes.normalize) == (3, 2.5, 1)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"top_k": 2, "temperature": 1.0}, "attribute 'temperature' is unknown: use one of top_k, scoring"),
        ({}, "attribute 'top_k' is missing"),
        ({"top_k": 2.0}, r"top_k=2.0 must be of type int"),
        ({"top_k": 2, "scoring": 1}, r"scoring=1 must be of type string"),
        ({"top_k": 2, "norm_min": "0"}, r"norm_min='0' must be of type float"),
        ({"top_k": 2, "scaling_factor": float("nan")}, r"scaling_factor=nan must be a finite number"),
    ],
)
def test_attributes_of_the_wrong_kind(attributes: dict[str, object], message: str) -> None:
    with pytest.raises(onnx_moe.errors.InvalidAttributeError, match=rf"^{ROUTER}: {message}"):
        router_attributes(attributes)
