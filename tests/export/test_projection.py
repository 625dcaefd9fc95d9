"""The matrices of all experts, of one, and what parameters hold for them."""

from __future__ import annotations

import pytest
import torch

from onnx_moe.export import Projection

PROJECTIONS = {
    "stacked": Projection(torch.randn(4, 6, 8)),
    "transposed": Projection(torch.randn(4, 8, 6), transposed=True),
    "more experts than matrices": Projection(torch.randn(5, 6, 8), experts=4),
    "flat": Projection(torch.randn(24, 8), experts=4),
    "flat and transposed": Projection(torch.randn(32, 6), transposed=True, experts=4),
    "flat parts": Projection(torch.randn(8, 8), parts=(torch.randn(16, 8),), experts=4),
}


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_an_expert_is_its_matrix_of_all(kind: str) -> None:
    projection = PROJECTIONS[kind]
    assert projection.matrix.shape == (4, 6, 8)
    for index in range(4):
        rows = [projection.rows_of_expert(parameter, index) for parameter in projection.parameters]
        slices = [tensor[own.start : own.stop] for tensor, own in zip(projection.parameters, rows, strict=True)]
        assert torch.equal(projection.matrix_of_expert(slices), projection.matrix[index : index + 1])


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_values_of_its_matrix_are_its_parameters(kind: str) -> None:
    projection = PROJECTIONS[kind]
    values = projection.values(projection.matrix)
    assert len(values) == len(projection.parameters)
    assert all(torch.equal(values[parameter], parameter) for parameter in projection.parameters)


def test_parts_follow_along_rows() -> None:
    projection = PROJECTIONS["flat parts"]
    first, second = projection.parameters
    assert torch.equal(projection.matrix[1], torch.cat([first[2:4], second[4:8]]))
